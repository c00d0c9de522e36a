//! Connections that break off, at every step of the protocol.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};

use crate::Fortress;
use crate::common::{ask, job, recv, say};
use crate::honest::{HOSTILE, connect_from, reset};

/// How far a client goes before it breaks off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Connected,
    MidLine,
    MidTrackedLine,
    RequestSent,
    TrackedRequestSent,
    ManyRequestsSent,
    OverlongSent,
    BareAnswered,
    LineAnswered,
    Refused,
    TrackedJobOpen,
    DataConnected,
    MidJeton,
    JetonSent,
    MidExchange,
    AnswerUnread,
    DelayUnderWay,
    ControlWhileExchanging,
}

const STEPS: [Step; 18] = [
    Step::Connected,
    Step::MidLine,
    Step::MidTrackedLine,
    Step::RequestSent,
    Step::TrackedRequestSent,
    Step::ManyRequestsSent,
    Step::OverlongSent,
    Step::BareAnswered,
    Step::LineAnswered,
    Step::Refused,
    Step::TrackedJobOpen,
    Step::DataConnected,
    Step::MidJeton,
    Step::JetonSent,
    Step::MidExchange,
    Step::AnswerUnread,
    Step::DelayUnderWay,
    Step::ControlWhileExchanging,
];

impl Step {
    fn go_so_far_and_break_off(self, address: SocketAddr) {
        let mut control = connect_from(HOSTILE, address);
        let said: &[u8] = match self {
            Self::Connected => b"",
            Self::MidLine => b"\nech",
            Self::MidTrackedLine => b"suivi e",
            Self::RequestSent => b"echo\n",
            Self::TrackedRequestSent => b"suivi echo\n",
            Self::ManyRequestsSent => &b"suivi echo\necho\nnonsense\n".repeat(100),
            Self::OverlongSent => &[b'x'; 5000],
            Self::BareAnswered => {
                control.write_all(b"echo").unwrap();
                recv(&mut control);
                b""
            }
            Self::LineAnswered => {
                job(&mut control, "echo");
                b""
            }
            Self::Refused => {
                assert!(ask(&mut control, "nonsense").starts_with("-1"));
                b""
            }
            Self::TrackedJobOpen => {
                ask(&mut control, "suivi echo");
                b""
            }
            Self::DataConnected
            | Self::MidJeton
            | Self::JetonSent
            | Self::MidExchange
            | Self::AnswerUnread
            | Self::DelayUnderWay
            | Self::ControlWhileExchanging => {
                self.in_data_connection(control, address);
                return;
            }
        };
        control.write_all(said).unwrap();
        reset(control);
    }

    fn in_data_connection(self, mut control: TcpStream, address: SocketAddr) {
        let kind = if self == Self::DelayUnderWay { "requetetype1" } else { "echo" };
        let answer = ask(&mut control, &format!("suivi {kind}"));
        let (port, jeton) = answer.split_once(' ').unwrap();
        let mut data = connect_from(HOSTILE, SocketAddr::new(address.ip(), port.parse().unwrap()));
        match self {
            Self::DataConnected => {}
            Self::MidJeton => data.write_all(format!("jeton {}", &jeton[..7]).as_bytes()).unwrap(),
            _ => data.write_all(format!("jeton {jeton}\n").as_bytes()).unwrap(),
        }
        match self {
            Self::MidExchange => assert_eq!(say(&mut data, "x"), "x"),
            Self::AnswerUnread | Self::DelayUnderWay => data.write_all(&[b'x'; 3000]).unwrap(),
            Self::ControlWhileExchanging => {
                assert_eq!(say(&mut data, "x"), "x");
                reset(control);
                assert_eq!(say(&mut data, "y"), "y", "the job goes on without who asked for it");
                return;
            }
            _ => {}
        }
        reset(data);
        reset(control);
    }
}

/// What servers may keep of all these connections, which never are more than a few at once.
const KEPT_BYTES: u64 = 4 << 20;

fn reset_at_every_step(rounds: usize) {
    let fortress = Fortress::new("claim_within = \"10s\"");
    let before = fortress.count("ledger", "accepted");
    fortress.besieged(|_| {
        for _ in 0..rounds {
            for step in STEPS {
                step.go_so_far_and_break_off(fortress.address);
            }
        }
    });
    let status = fortress.has_held(KEPT_BYTES);
    // Of these at least a port was seen.
    let jobs = (rounds * 10) as u64;
    assert!(status["ledger"]["accepted"].as_u64() >= Some(before + jobs), "{status}");
    assert!(status["ledger"]["expired"].as_u64() >= Some(3 * rounds as u64), "{status}");
    assert!(status["ledger"]["failed"].as_u64() >= Some(rounds as u64), "{status}");
    assert!(status["clients"]["broken"].as_u64() >= Some(rounds as u64), "{status}");
}

#[test]
fn a_reset_at_any_step_hurts_only_who_sends_it() {
    reset_at_every_step(15);
}

#[test]
#[ignore = "thousands of resets take a minute or two"]
fn very_many_resets_hurt_only_who_sends_them() {
    reset_at_every_step(200);
}
