//! Single values: which plain words YAML readers disagree on, and the units of time, CPU and memory.
//!
//! Owns the conversion between their texts and integers, both ways. Not here: where they stand (`reader`, `service`).

use super::error::{ErrorKind, quoted};
use super::{CPU_MILLICORES_MAX, CPU_MILLICORES_MIN, MEMORY_MIB_MAX, MEMORY_MIB_MIN};
use crate::time::Millis;

/// A value that is not right: kind, what was found, what would be right.
pub(super) struct Wrong {
    pub(super) kind: ErrorKind,
    pub(super) found: String,
    pub(super) expected: String,
}

fn wrong(kind: ErrorKind, found: impl Into<String>, expected: impl Into<String>) -> Wrong {
    Wrong { kind, found: found.into(), expected: expected.into() }
}

/// What an unquoted word is to a YAML 1.1 or 1.2 reader, if it is anything but a text.
pub(super) fn meaning(plain: &str) -> Option<&'static str> {
    let unsigned = plain.strip_prefix(['-', '+']).unwrap_or(plain);
    let first = unsigned.bytes().next();
    if matches!(plain, "" | "~") || plain.eq_ignore_ascii_case("null") {
        return Some("nothing");
    }
    if ["y", "n", "yes", "no", "on", "off", "true", "false"].iter().any(|word| plain.eq_ignore_ascii_case(word)) {
        return Some("a boolean");
    }
    if [".inf", ".nan"].iter().any(|word| unsigned.eq_ignore_ascii_case(word)) {
        return Some("a number");
    }
    if !first.is_some_and(|byte| byte.is_ascii_digit() || byte == b'.')
        || !unsigned.bytes().any(|byte| byte.is_ascii_digit())
    {
        return None;
    }
    if is_date(plain) {
        return Some("a date");
    }
    if let Some((whole, rest)) = unsigned.split_once(':') {
        let minutes = |part: &str| (1..=2).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_digit());
        let rest = rest.split_once('.').map_or(rest, |(rest, _)| rest);
        let base_60 = is_digits(whole) && rest.split(':').all(minutes);
        return base_60.then_some("a number of base 60");
    }
    let lower = unsigned.to_ascii_lowercase();
    for (prefix, name) in [("0x", "a hexadecimal number"), ("0o", "an octal number"), ("0b", "a binary number")] {
        if let Some(digits) = lower.strip_prefix(prefix) {
            let number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'_');
            return number.then_some(name);
        }
    }
    if is_digits(unsigned) {
        return Some(if unsigned.len() > 1 && unsigned.starts_with('0') { "an octal number" } else { "a number" });
    }
    let (mantissa, exponent) = lower.split_once('e').unwrap_or((&lower, "0"));
    let exponent = exponent.strip_prefix(['-', '+']).unwrap_or(exponent);
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit() || byte == b'_');
    (digits(whole) && digits(fraction) && is_digits(exponent)).then_some("a number")
}

fn is_digits(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_digit())
        && text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'_')
}

/// `2026-11-24`, also with a time behind it.
fn is_date(text: &str) -> bool {
    let bytes = text.as_bytes();
    let mut parts = text.splitn(3, '-');
    bytes.len() >= 8
        && parts.next().is_some_and(|year| year.len() == 4 && is_digits(year))
        && parts.next().is_some_and(|month| month.len() <= 2 && is_digits(month))
        && parts.next().is_some_and(|day| {
            let digits = day.bytes().take_while(u8::is_ascii_digit).count();
            (1..=2).contains(&digits) && matches!(day.as_bytes().get(digits), None | Some(b'T' | b't' | b' '))
        })
}

/// Whether every reader takes the unquoted `text` for the same integer, written as we would write it.
pub(super) fn is_plain_integer(text: &str) -> bool {
    let unsigned = text.strip_prefix('-').unwrap_or(text);
    text == "0"
        || ((1..=15).contains(&unsigned.len())
            && !unsigned.starts_with('0')
            && unsigned.bytes().all(|byte| byte.is_ascii_digit()))
}

/// An unquoted word where a text is meant, but another reader would take it for something else.
pub(super) fn ambiguous(text: &str, meaning: &str) -> Wrong {
    wrong(
        ErrorKind::Ambiguous,
        format!("the unquoted {}, which YAML readers may take for {meaning}", quoted(text)),
        format!("if the text is meant, write {}", quoted(&format!("\"{text}\""))),
    )
}

const UNITS: [(&str, u64); 4] = [("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// `15m`: a whole number and `ms`, `s`, `m` or `h`.
pub(super) fn duration(text: &str, plain: bool, min: Millis, max: Millis) -> Result<Millis, Wrong> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    if plain && text.contains(':') && meaning(text).is_some() {
        return Err(Wrong { expected: DURATION.to_owned(), ..ambiguous(text, "a number of base 60") });
    }
    if unit.is_empty() && digits > 0 {
        let expected = if digits <= 6 {
            format!("add a unit: `{number}ms`, `{number}s`, `{number}m` or `{number}h`")
        } else {
            DURATION.to_owned()
        };
        return Err(wrong(ErrorKind::InvalidValue, format!("{} without a unit", quoted(text)), expected));
    }
    let unit = UNITS.iter().find(|(name, _)| *name == unit);
    let (Some((_, scale)), true) = (unit, digits > 0) else {
        return Err(wrong(ErrorKind::InvalidValue, quoted(text), DURATION));
    };
    match number.parse::<u64>().ok().and_then(|number| number.checked_mul(*scale)) {
        Some(length) if (min.get()..=max.get()).contains(&length) => Ok(Millis::new(length)),
        _ => Err(wrong(
            ErrorKind::OutOfLimits,
            quoted(text),
            format!("allowed is {} to {}", show_duration(min), show_duration(max)),
        )),
    }
}

const DURATION: &str = "a duration is a whole number and `ms`, `s`, `m` or `h`, such as `15m`";

/// In the largest unit that divides it: `15m`, `90s`, `1500ms`.
pub(super) fn show_duration(length: Millis) -> String {
    let length = length.get();
    let (unit, scale) = UNITS.into_iter().find(|(_, scale)| length.is_multiple_of(*scale)).unwrap_or(("ms", 1));
    format!("{}{unit}", length / scale)
}

/// `250m` (millicores), `1` or `0.5` (cores, at most three decimals), as millicores.
pub(super) fn cpu(text: &str) -> Result<u32, Wrong> {
    let range = || {
        let max = CPU_MILLICORES_MAX / 1_000;
        wrong(ErrorKind::OutOfLimits, quoted(text), format!("allowed is `{CPU_MILLICORES_MIN}m` to `{max}`"))
    };
    let shape = || {
        let expected =
            "CPU is given in millicores such as `250m`, or in cores such as `1` or `0.5` (at most three decimals)";
        wrong(ErrorKind::InvalidValue, quoted(text), expected)
    };
    let all_digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let millicores = if let Some(number) = text.strip_suffix('m') {
        if !all_digits(number) {
            return Err(shape());
        }
        number.parse::<u32>().map_err(|_| range())?
    } else {
        let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
        if !all_digits(whole)
            || !all_digits(fraction)
            || fraction.len() > 3
            || (whole.len() > 1 && whole.starts_with('0'))
        {
            return Err(shape());
        }
        let thousandths = format!("{fraction:0<3}").parse::<u32>().map_err(|_| range())?;
        let cores = whole.parse::<u32>().map_err(|_| range())?;
        cores.checked_mul(1_000).and_then(|cores| cores.checked_add(thousandths)).ok_or_else(range)?
    };
    if (CPU_MILLICORES_MIN..=CPU_MILLICORES_MAX).contains(&millicores) { Ok(millicores) } else { Err(range()) }
}

/// `128Mi` or `2Gi`, as MiB.
pub(super) fn memory(text: &str) -> Result<u32, Wrong> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let scale = match unit {
        "Mi" => 1,
        "Gi" => 1_024,
        _ => {
            let lower = unit.trim().to_ascii_lowercase();
            let unit = match lower.as_str() {
                "" | "m" | "mb" | "mib" | "mi" => Some("Mi"),
                "g" | "gb" | "gib" | "gi" => Some("Gi"),
                _ => None,
            };
            let expected = match unit {
                Some(unit) if (1..=6).contains(&digits) => format!("write `{number}{unit}`"),
                _ => "memory is a whole number and `Mi` or `Gi`, such as `256Mi`".to_owned(),
            };
            return Err(wrong(ErrorKind::InvalidValue, quoted(text), expected));
        }
    };
    match number.parse::<u32>().ok().and_then(|number| number.checked_mul(scale)) {
        Some(mib) if (MEMORY_MIB_MIN..=MEMORY_MIB_MAX).contains(&mib) => Ok(mib),
        None if digits == 0 => {
            Err(wrong(ErrorKind::InvalidValue, quoted(text), "the number before the unit is missing, such as `256Mi`"))
        }
        _ => {
            let expected = format!("allowed is `{MEMORY_MIB_MIN}Mi` to `{}Gi`", MEMORY_MIB_MAX / 1_024);
            Err(wrong(ErrorKind::OutOfLimits, quoted(text), expected))
        }
    }
}

/// In `Gi` where that is whole.
pub(super) fn show_memory(mib: u32) -> String {
    if mib.is_multiple_of(1_024) { format!("{}Gi", mib / 1_024) } else { format!("{mib}Mi") }
}

/// A name of an environment variable. The name itself is not repeated in the error: it may be a pasted secret.
pub(super) fn variable(text: &str) -> Result<(), Wrong> {
    const CHARS_MAX: usize = 128;
    let expected = "a variable name has A-Z, 0-9 and `_` and does not begin with a digit, such as `DATABASE_URL`";
    let length = text.chars().count();
    if length == 0 || length > CHARS_MAX {
        let expected = format!("{expected}, and at most {CHARS_MAX} characters");
        return Err(wrong(ErrorKind::OutOfLimits, format!("a name of {length} characters"), expected));
    }
    let bad = |(index, found): &(usize, char)| {
        !(found.is_ascii_uppercase() || *found == '_' || (*index > 0 && found.is_ascii_digit()))
    };
    if let Some((index, found)) = text.chars().enumerate().find(bad) {
        let found = format!("{} at position {} of a variable name", quoted(&found.to_string()), index + 1);
        return Err(wrong(ErrorKind::InvalidValue, found, expected));
    }
    if text.starts_with(super::RESERVED_VARIABLE_PREFIX) {
        let expected = "names that begin with `ENVFORGE_` are set by EnvForge; choose another";
        return Err(wrong(ErrorKind::InvalidValue, "a reserved variable name", expected));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_that_yaml_readers_disagree_on_are_known() {
        for (text, expected) in [
            ("no", Some("a boolean")),
            ("Yes", Some("a boolean")),
            ("ON", Some("a boolean")),
            ("n", Some("a boolean")),
            ("true", Some("a boolean")),
            ("", Some("nothing")),
            ("~", Some("nothing")),
            ("NULL", Some("nothing")),
            ("012", Some("an octal number")),
            ("0o17", Some("an octal number")),
            ("0x1F", Some("a hexadecimal number")),
            ("12:30", Some("a number of base 60")),
            ("1:02:03.5", Some("a number of base 60")),
            ("-5", Some("a number")),
            ("1_000", Some("a number")),
            ("1.10", Some("a number")),
            ("1e3", Some("a number")),
            (".5", Some("a number")),
            (".inf", Some("a number")),
            ("2026-11-24", Some("a date")),
            ("2026-11-24T10:00:00Z", Some("a date")),
            ("1.2.3", None),
            ("redis:7", None),
            ("127.0.0.1:80", None),
            ("hello", None),
            ("nope", None),
            (".", None),
            ("-", None),
            ("e5", None),
            ("15m", None),
            ("0xyz", None),
            ("2026-11", None),
            ("12:345", None),
        ] {
            assert_eq!(meaning(text), expected, "{text}");
        }
    }

    #[test]
    fn durations_are_shown_in_the_largest_unit_that_divides_them() {
        for (length, expected) in
            [(900_000, "15m"), (90_000, "90s"), (1_500, "1500ms"), (7_200_000, "2h"), (200, "200ms")]
        {
            assert_eq!(show_duration(Millis::new(length)), expected);
        }
    }
}
