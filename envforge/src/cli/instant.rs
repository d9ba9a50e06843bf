//! Instants and lengths of time as people write and read them: `2h`, `30m ago`, `2026-11-24 07:54 (3 min ago)`.
//!
//! Not here: what the API gets, which is RFC 3339 or plain numbers.

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

/// The present instant and the reader's time zone: what relative and local times are shown by.
#[derive(Clone, Debug)]
pub(crate) struct Instants {
    now: fn() -> Timestamp,
    zone: TimeZone,
}

impl Instants {
    /// Of this machine.
    pub(crate) fn of_machine() -> Self {
        Self { now: machine_now, zone: TimeZone::system() }
    }

    #[cfg(test)]
    pub(crate) fn for_tests() -> Self {
        Self { now: || Timestamp::from_second(1_795_500_000).expect("in range"), zone: TimeZone::UTC }
    }

    pub(crate) fn now(&self) -> Timestamp {
        (self.now)()
    }

    pub(crate) fn now_unix_millis(&self) -> u64 {
        u64::try_from(self.now().as_millisecond()).unwrap_or(0)
    }

    /// `2026-11-24 07:54 (3 min ago)`, in the reader's time zone.
    pub(crate) fn show(&self, instant: Timestamp) -> String {
        let local = instant.to_zoned_datetime(self.zone.clone());
        format!("{} ({})", local.strftime("%Y-%m-%d %H:%M"), self.relative(instant))
    }

    /// `07:54:03` of the reader's day, for streams of lines.
    pub(crate) fn clock_time(&self, instant: Timestamp) -> String {
        instant.to_zoned_datetime(self.zone.clone()).strftime("%H:%M:%S").to_string()
    }

    /// `3 min ago`, `in 2 h`, `now`.
    pub(crate) fn relative(&self, instant: Timestamp) -> String {
        let seconds = instant.duration_since(self.now()).as_secs();
        match seconds {
            -1..=1 => "now".to_owned(),
            // An end that is near is worth a second unit: `in 1 h 59 min`, not `in 1 h`.
            2..172_800 => format!("in {}", show_length_ms(seconds.unsigned_abs() * 1_000).replace(".0 s", " s")),
            172_800.. => format!("in {}", coarse(seconds.unsigned_abs())),
            _ => format!("{} ago", coarse(seconds.unsigned_abs())),
        }
    }

    /// As `show`, of what the API wrote: RFC 3339, or milliseconds since 1970. What is neither is shown as it is.
    pub(crate) fn show_wire(&self, value: Option<&serde_json::Value>) -> String {
        read_wire(value).map_or_else(|| super::output::cell(value), |instant| self.show(instant))
    }

    /// Reads `--from`, `--since` and the like: RFC 3339, a local date or date and time, or a length of time ago (`2h`, `30m ago`).
    ///
    /// # Errors
    /// A sentence that shows what is accepted.
    pub(crate) fn parse(&self, text: &str) -> Result<Timestamp, String> {
        let text = text.trim();
        if text == "now" {
            return Ok(self.now());
        }
        if let Ok(instant) = text.parse::<Timestamp>() {
            return Ok(instant);
        }
        if let Ok(local) = text.parse::<jiff::civil::DateTime>() {
            return local
                .to_zoned_datetime(self.zone.clone())
                .map(|zoned| zoned.timestamp())
                .map_err(|error| error.to_string());
        }
        let length = text.strip_suffix("ago").unwrap_or(text).trim();
        let ago = parse_length(length).ok().and_then(|seconds| i64::try_from(seconds).ok());
        ago.and_then(|seconds| self.now().checked_sub(SignedDuration::from_secs(seconds)).ok()).ok_or_else(|| {
            format!(
                "`{text}` is no point in time: write 2026-11-24T07:54:00Z, 2026-11-24, 2026-11-24 07:54, or how long ago (2h, 7d)"
            )
        })
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the command line shows relative times; everybody else is handed `Instants`"
)]
fn machine_now() -> Timestamp {
    Timestamp::now()
}

/// An instant as the API writes it: RFC 3339, or milliseconds since 1970.
pub(crate) fn read_wire(value: Option<&serde_json::Value>) -> Option<Timestamp> {
    match value? {
        serde_json::Value::String(text) => text.parse().ok(),
        serde_json::Value::Number(number) => Timestamp::from_millisecond(number.as_i64()?).ok(),
        _ => None,
    }
}

/// One unit, rounded down: what a person wants to know of a moment.
fn coarse(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3_600 => format!("{} min", seconds / 60),
        3_600..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// A length of time in two units: `1 h 12 min`, `3.2 s`, `840 ms`.
pub(crate) fn show_length_ms(ms: u64) -> String {
    let (seconds, minutes, hours) = (ms / 1_000, ms / 60_000, ms / 3_600_000);
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..60_000 => format!("{seconds}.{} s", ms % 1_000 / 100),
        60_000..3_600_000 => two("min", minutes, "s", seconds % 60),
        3_600_000..172_800_000 => two("h", hours, "min", minutes % 60),
        _ => two("days", hours / 24, "h", hours % 24),
    }
}

fn two(unit: &str, count: u64, lower: &str, rest: u64) -> String {
    if rest == 0 { format!("{count} {unit}") } else { format!("{count} {unit} {rest} {lower}") }
}

/// Reads `90s`, `30m`, `2h`, `1h30m`, `7d`: whole seconds.
///
/// # Errors
/// A sentence that shows what is accepted, for a text without unit, with an unknown one, zero, or beyond ten years.
pub(crate) fn parse_length(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{text}` is no length of time: write 90s, 30m, 2h, 1h30m or 7d");
    let mut total: u64 = 0;
    let mut rest = text.trim();
    if rest.is_empty() {
        return Err(wrong());
    }
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, after) = rest.split_at(digits);
        let letters = after.bytes().take_while(u8::is_ascii_alphabetic).count();
        let (unit, after) = after.split_at(letters);
        let scale = match unit {
            "s" | "sec" => 1,
            "m" | "min" => 60,
            "h" => 3_600,
            "d" => 86_400,
            "w" => 604_800,
            _ => return Err(wrong()),
        };
        let number: u64 = number.parse().map_err(|_| wrong())?;
        total = number.checked_mul(scale).and_then(|part| total.checked_add(part)).ok_or_else(wrong)?;
        rest = after.trim_start();
    }
    if total == 0 || total > 10 * 366 * 86_400 { Err(wrong()) } else { Ok(total) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn lengths_are_read_in_the_units_people_write() {
        for (text, seconds) in
            [("90s", 90), ("30m", 1_800), ("2h", 7_200), ("1h30m", 5_400), ("7d", 604_800), ("1w 1d", 691_200)]
        {
            assert_eq!(parse_length(text), Ok(seconds), "{text}");
        }
        for text in ["", "2", "h", "0s", "-2h", "2 hours later", "1.5h", "99999999999999999999d", "20y", "5é"] {
            assert!(parse_length(text).unwrap_err().contains("90s, 30m, 2h"), "{text}");
        }
    }

    #[test]
    fn instants_are_read_absolute_local_and_relative() {
        let instants = Instants::for_tests();
        let ago = |text: &str| instants.now().duration_since(instants.parse(text).unwrap()).as_secs();
        assert_eq!(ago("2h"), 7_200);
        assert_eq!(ago("30m ago"), 1_800);
        assert_eq!(ago("now"), 0);
        assert_eq!(instants.parse("2026-11-24").unwrap(), "2026-11-24T00:00:00Z".parse().unwrap());
        assert_eq!(instants.parse("2026-11-24 07:54").unwrap(), "2026-11-24T07:54:00Z".parse().unwrap());
        assert!(instants.parse("yesterday").unwrap_err().contains("2026-11-24T07:54:00Z"));
    }

    #[test]
    fn instants_are_shown_local_and_relative() {
        let instants = Instants::for_tests();
        let shifted = |seconds: i64| instants.now().checked_add(SignedDuration::from_secs(seconds)).unwrap();
        assert_eq!(instants.relative(shifted(0)), "now");
        assert_eq!(instants.relative(shifted(-180)), "3 min ago");
        assert_eq!(instants.relative(shifted(7_200)), "in 2 h");
        assert_eq!(instants.relative(shifted(7_199)), "in 1 h 59 min");
        assert_eq!(instants.relative(shifted(30)), "in 30 s");
        assert_eq!(instants.relative(shifted(864_000)), "in 10 days");
        assert_eq!(instants.relative(shifted(-300_000)), "3 days ago");
        let wire = json!("2026-11-24T02:36:00Z");
        assert!(
            instants.show_wire(Some(&wire)).starts_with("2026-11-24 02:36 ("),
            "{}",
            instants.show_wire(Some(&wire))
        );
        assert_eq!(instants.show_wire(Some(&json!(0))).split(' ').next(), Some("1970-01-01"));
        assert_eq!(instants.show_wire(Some(&json!("soon"))), "soon");
        assert_eq!(instants.show_wire(None), "");
    }

    #[test]
    fn lengths_are_shown_in_two_units() {
        for (ms, shown) in [
            (0, "0 ms"),
            (840, "840 ms"),
            (3_240, "3.2 s"),
            (60_000, "1 min"),
            (75_000, "1 min 15 s"),
            (4_320_000, "1 h 12 min"),
            (180_000_000, "2 days 2 h"),
        ] {
            assert_eq!(show_length_ms(ms), shown);
        }
    }
}
