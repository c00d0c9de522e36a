//! Figures for people: no more digits than tell something, and their units.

use std::time::Duration;

/// `1,234,567`.
#[must_use]
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// So many a second, without the unit: `0.25`, `3.4`, `1,234`.
#[must_use]
pub fn rate(per_second: f64) -> String {
    match per_second {
        ..0.005 => "0".to_owned(),
        ..0.995 => format!("{per_second:.2}"),
        ..99.95 => format!("{per_second:.1}"),
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a positive rate, rounded"
        )]
        _ => count(per_second.round() as u64),
    }
}

/// A length of time in three figures: `8.25 ms`.
#[must_use]
pub fn time(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    let (value, unit) = match seconds {
        ..0.000_999_5 => (seconds * 1e6, "µs"),
        ..0.999_5 => (seconds * 1e3, "ms"),
        ..119.5 => (seconds, "s"),
        _ => return age(u64::try_from(time.as_millis()).unwrap_or(u64::MAX)),
    };
    let digits = match value {
        ..9.995 => 2,
        ..99.95 => 1,
        _ => 0,
    };
    let text = format!("{value:.digits$}");
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text}\u{a0}{unit}")
}

/// A length of time in milliseconds, in at most two units: `0.4 s`, `12 s`, `3 min 20 s`, `2 d 3 h`.
#[must_use]
pub fn age(millis: u64) -> String {
    let seconds = millis / 1000;
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match seconds {
        0..10 => format!("{seconds}.{}\u{a0}s", millis % 1000 / 100),
        10..60 => format!("{seconds}\u{a0}s"),
        60..3600 => format!("{minutes}\u{a0}min {}\u{a0}s", seconds % 60),
        3600..86_400 => format!("{hours}\u{a0}h {}\u{a0}min", minutes % 60),
        _ => format!("{}\u{a0}d {}\u{a0}h", count(days), hours % 24),
    }
}

/// `3.2 MiB`.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "two or three figures are left of it")]
pub fn bytes(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut value, mut unit) = (bytes as f64, 0);
    while value >= 1023.5 && unit + 1 < units.len() {
        (value, unit) = (value / 1024.0, unit + 1);
    }
    let digits = usize::from(unit > 0 && value < 99.95);
    format!("{value:.digits$}\u{a0}{}", units[unit])
}

/// Of one core: `0.3 %`.
#[must_use]
pub fn share(cores: f64) -> String {
    let percent = cores * 100.0;
    let digits = usize::from(percent < 9.95);
    format!("{percent:.digits$}\u{a0}%")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(text: &str) -> String {
        text.replace('\u{a0}', " ")
    }

    #[test]
    fn counts_and_rates() {
        let counts = [0, 12, 999, 1_000, 123_456, 1_234_567].map(count);
        assert_eq!(counts, ["0", "12", "999", "1,000", "123,456", "1,234,567"]);
        let rates = [0.0, 0.25, 0.999, 3.44, 99.94, 99.96, 1_234.4].map(rate);
        assert_eq!(rates, ["0", "0.25", "1.0", "3.4", "99.9", "100", "1,234"]);
    }

    #[test]
    fn times_in_three_figures() {
        let times = [0, 10, 850, 1_000, 1_250, 23_400, 999_600, 12_000_000, 100_000_000, 150_000_000];
        let times = times.map(|micros| plain(&time(Duration::from_micros(micros))));
        let expected =
            ["0 µs", "10 µs", "850 µs", "1 ms", "1.25 ms", "23.4 ms", "1 s", "12 s", "100 s", "2 min 30 s"];
        assert_eq!(times, expected);
    }

    #[test]
    fn ages_in_two_units() {
        let ages = [0, 450, 9_999, 10_000, 59_999, 200_000, 7_500_000, 183_600_000];
        let ages = ages.map(|age| plain(&self::age(age)));
        assert_eq!(ages, ["0.0 s", "0.4 s", "9.9 s", "10 s", "59 s", "3 min 20 s", "2 h 5 min", "2 d 3 h"]);
    }

    #[test]
    fn memory_and_cores() {
        let memory = [0, 1_000, 1_023, 1_024, 3_355_443, 1 << 40].map(|bytes| plain(&self::bytes(bytes)));
        assert_eq!(memory, ["0 B", "1000 B", "1023 B", "1.0 KiB", "3.2 MiB", "1.0 TiB"]);
        assert_eq!(
            [0.0, 0.003, 0.5, 1.0].map(|cores| plain(&share(cores))),
            ["0.0 %", "0.3 %", "50 %", "100 %"]
        );
    }
}
