//! Quantities in few characters, for columns that are narrow.

use std::time::Duration;

/// What stands where nothing is known.
pub const UNKNOWN: &str = "-";

/// A text of what is known, or [`UNKNOWN`].
pub fn or_unknown<T>(value: Option<T>, text: impl FnOnce(T) -> String) -> String {
    value.map_or_else(|| UNKNOWN.to_owned(), text)
}

/// A number in at most `width` characters, of which there are at least four: all its digits, or thousands (`12k`),
/// millions (`1.2M`), and so on.
#[must_use]
pub fn count(value: u64, width: usize) -> String {
    let plain = value.to_string();
    if plain.len() <= width {
        return plain;
    }
    let mut unit = 1u64;
    for letter in ['k', 'M', 'G', 'T', 'P', 'E'] {
        unit = unit.saturating_mul(1000);
        let whole = value / unit;
        let tenths = format!("{whole}.{}{letter}", value % unit / (unit / 10));
        let text = if tenths.len() <= width { tenths } else { format!("{whole}{letter}") };
        if text.len() <= width {
            return text;
        }
    }
    plain
}

/// So many in a second, as [`count`]; with a tenth below ten.
#[must_use]
pub fn rate(per_second: f64, width: usize) -> String {
    if per_second < 9.95 { format!("{per_second:.1}") } else { count(whole(per_second), width) }
}

/// A share of a core in hundredths, in at most four characters as long as it is below a hundred cores.
#[must_use]
pub fn percent(of_a_core: f64) -> String {
    if of_a_core < 99.95 { format!("{of_a_core:.1}") } else { whole(of_a_core).to_string() }
}

/// A number that is not negative, rounded.
#[must_use]
pub fn whole(value: f64) -> u64 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it saturates")]
    let whole = value.round() as u64;
    whole
}

/// Memory, in at most five characters: `640K`, `3.4M`.
#[must_use]
pub fn bytes(bytes: u64) -> String {
    let kibi = bytes / 1024;
    for (unit, letter) in [(1, 'K'), (1 << 10, 'M'), (1 << 20, 'G'), (1 << 30, 'T')] {
        let whole = kibi / unit;
        if whole < 10 && unit > 1 {
            return format!("{whole}.{}{letter}", kibi % unit * 10 / unit);
        }
        if whole < 1000 || letter == 'T' {
            return format!("{whole}{letter}");
        }
    }
    UNKNOWN.to_owned()
}

/// A time in at most five characters: `45us`, `1.2ms`, `120ms`, `1.2s`, `12s`, `12m`, `12h`, `12d`.
#[must_use]
pub fn time(time: Duration) -> String {
    let micros = time.as_micros();
    match micros {
        0..1_000 => format!("{micros}us"),
        1_000..10_000 => format!("{}.{}ms", micros / 1_000, micros % 1_000 / 100),
        10_000..1_000_000 => format!("{}ms", micros / 1_000),
        1_000_000..10_000_000 => format!("{}.{}s", micros / 1_000_000, micros % 1_000_000 / 100_000),
        _ => match time.as_secs() {
            seconds @ 0..100 => format!("{seconds}s"),
            seconds @ 100..6_000 => format!("{}m", seconds / 60),
            seconds @ 6_000..360_000 => format!("{}h", seconds / 3600),
            seconds => format!("{}d", seconds / 86_400),
        },
    }
}

/// How long something has run: `13s`, `2m13s`, `3h05m`, `4d07h`.
#[must_use]
pub fn age(time: Duration) -> String {
    let seconds = time.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{minutes}m{:02}s", seconds % 60),
        3600..86_400 => format!("{hours}h{:02}m", minutes % 60),
        _ => format!("{days}d{:02}h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_has_as_many_digits_as_there_is_room_for() {
        assert_eq!([0, 9999, 10_000, 1_250_000].map(|value| count(value, 4)), ["0", "9999", "10k", "1.2M"]);
        assert_eq!([123_456, 12_345_678].map(|value| count(value, 5)), ["123k", "12.3M"]);
        assert_eq!(count(u64::MAX, 4), "18E");
        assert_eq!(count(123_456, 6), "123456");
    }

    #[test]
    fn whatever_the_number_its_column_holds() {
        for shift in 0..64 {
            for width in 4..9 {
                let text = count(u64::MAX >> shift, width);
                assert!(text.len() <= width, "{text}");
            }
            assert!(bytes((u64::MAX >> shift) / 20_000).len() <= 5);
            let text = time(Duration::from_micros(u64::MAX >> shift >> 14));
            assert!(text.len() <= 6, "{text}");
        }
    }

    #[test]
    fn rates_and_shares() {
        assert_eq!(
            [0.0, 0.04, 9.94, 9.96, 1234.5].map(|value| rate(value, 6)),
            ["0.0", "0.0", "9.9", "10", "1235"]
        );
        assert_eq!([0.0, 99.94, 99.96, 250.0].map(percent), ["0.0", "99.9", "100", "250"]);
    }

    #[test]
    fn memory_and_times() {
        assert_eq!([0, 655_360, 3_565_158, 130_000_000].map(bytes), ["0K", "640K", "3.3M", "123M"]);
        let of = |micros| time(Duration::from_micros(micros));
        assert_eq!([0, 999, 1_250, 12_500, 999_999].map(of), ["0us", "999us", "1.2ms", "12ms", "999ms"]);
        assert_eq!([1_250_000, 12_500_000, 150_000_000].map(of), ["1.2s", "12s", "2m"]);
        assert_eq!([7_200_000_000, 864_000_000_000].map(of), ["2h", "10d"]);
        let of = |seconds| age(Duration::from_secs(seconds));
        assert_eq!([13, 133, 11_100, 370_800].map(of), ["13s", "2m13s", "3h05m", "4d07h"]);
    }
}
