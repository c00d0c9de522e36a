//! The access record: a line of the log for each job that has ended, where the configuration asks for it. Whoever
//! ends a job writes it: its secondary, else the principal.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use log::kv::Value;

use crate::config::Request;
use crate::core::job::{End, Ended, Incarnation};
use crate::core::moment::Moment;
use crate::os::clock;
use crate::os::log::ACCESS;

/// What went over a data connection, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bytes {
    /// From the client.
    pub received: u64,
    /// To the client.
    pub sent: u64,
}

/// A job that has ended just now.
#[derive(Clone, Copy, Debug)]
pub struct AccessRecord<'a> {
    /// What is known of it.
    pub job: &'a Ended,
    /// The request types.
    pub requests: &'a [Request],
    /// The slot where it was given.
    pub slot: u16,
    /// Whose connection it was; that asked for it, where none is known.
    pub peer: IpAddr,
    /// The port of that connection.
    pub peer_port: Option<u16>,
    /// What was counted of it.
    pub bytes: Option<Bytes>,
}

/// A field, where it is known.
type Field<'a> = Option<(&'static str, Value<'a>)>;

impl AccessRecord<'_> {
    /// Writes the record.
    pub fn tell(&self) {
        self.tell_at(clock::now(), &mut |fields| {
            let mut record = log::Record::builder();
            record.level(log::Level::Info).target(ACCESS).key_values(&fields);
            log::logger().log(&record.args(format_args!("access{}", Pairs(fields))).build());
        });
    }

    /// `tell` is lent its fields.
    fn tell_at(&self, now: Moment, tell: &mut dyn FnMut(&[Field<'_>])) {
        let &Self { job, requests, slot, peer, peer_port, bytes } = self;
        let Ended { number, kind, given_at, claimed_at, holder, end, .. } = *job;
        let kind = requests.get(kind).map_or("?", |request| request.name.as_str());
        let secondary = Seat(slot, holder);
        let waited = claimed_at.or((holder == 0).then_some(now)).map(|until| millis(until.since(given_at)));
        let served = claimed_at.map(|since| millis(now.since(since)));
        let (outcome, reason) = match end {
            End::Done => ("done", None),
            End::Failed(reason) => ("failed", Some(reason)),
            End::Expired => ("expired", None),
        };
        tell(&[
            Some(("job", number.into())),
            Some(("type", kind.into())),
            Some(("peer", Value::from_display(&peer))),
            peer_port.map(|port| ("peer_port", port.into())),
            Some(("secondary", Value::from_display(&secondary))),
            waited.map(|millis| ("wait_ms", millis.into())),
            served.map(|millis| ("service_ms", millis.into())),
            bytes.map(|bytes| ("bytes_in", bytes.received.into())),
            bytes.map(|bytes| ("bytes_out", bytes.sent.into())),
            Some(("outcome", outcome.into())),
            reason.as_ref().map(|reason| ("reason", Value::from_display(reason))),
        ]);
    }
}

fn millis(time: Duration) -> f64 {
    u32::try_from(time.as_micros()).map_or(time.as_secs_f64() * 1000.0, |micros| f64::from(micros) / 1000.0)
}

/// A secondary by slot and incarnation; where nobody served, the slot.
struct Seat(u16, Incarnation);

impl fmt::Display for Seat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self(slot, 0) => write!(f, "{slot}"),
            Self(slot, incarnation) => write!(f, "{slot}.{incarnation}"),
        }
    }
}

/// Fields for people; a reason is several words.
struct Pairs<'a>(&'a [Field<'a>]);

impl fmt::Display for Pairs<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().flatten().try_for_each(|(key, value)| match *key {
            "reason" => write!(f, " {key}=\"{value}\""),
            key => write!(f, " {key}={value}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::core::job::Reason;

    fn told(job: &Ended, peer_port: Option<u16>, bytes: Option<Bytes>) -> String {
        let requests = &Config::default().request;
        let access = AccessRecord { job, requests, slot: 3, peer: job.client, peer_port, bytes };
        let mut text = String::new();
        access.tell_at(Moment::from_nanos(90_000_000), &mut |fields| text = Pairs(fields).to_string());
        text
    }

    #[test]
    fn a_record_tells_what_is_known_and_nothing_else() {
        let done = Ended {
            number: 17,
            kind: 2,
            client: "192.0.2.7".parse().unwrap(),
            given_at: Moment::from_nanos(10_000_000),
            claimed_at: Some(Moment::from_nanos(10_250_000)),
            holder: 2,
            end: End::Done,
        };
        let bytes = Bytes { received: 5, sent: 1 << 40 };
        assert_eq!(
            told(&done, Some(4711), Some(bytes)),
            " job=17 type=echo peer=192.0.2.7 peer_port=4711 secondary=3.2 wait_ms=0.25 service_ms=79.75 \
             bytes_in=5 bytes_out=1099511627776 outcome=done"
        );
        let lost = Ended { end: End::Failed(Reason::SecondaryLost), kind: 99, claimed_at: None, ..done };
        assert_eq!(
            told(&lost, None, None),
            " job=17 type=? peer=192.0.2.7 secondary=3.2 outcome=failed reason=\"secondary lost\""
        );
        let expired = Ended { end: End::Expired, holder: 0, claimed_at: None, ..done };
        assert_eq!(
            told(&expired, None, None),
            " job=17 type=echo peer=192.0.2.7 secondary=3 wait_ms=80 outcome=expired"
        );
    }
}
