//! Instants and durations as this API writes and reads them.
//!
//! Instants are RFC 3339 in UTC with milliseconds; durations are whole numbers with their unit in the field's name.

use envforge_domain::time::UnixMillis;
use serde::{Serialize, Serializer};

/// An instant in an answer: `2026-11-24T08:00:00.000Z`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Instant(pub UnixMillis);

impl Instant {
    pub(crate) fn text(self) -> String {
        let milliseconds = i64::try_from(self.0.get()).unwrap_or(i64::MAX);
        // Beyond what the calendar knows (year 9999) the last instant that it does know is shown.
        let timestamp = jiff::Timestamp::from_millisecond(milliseconds).unwrap_or(jiff::Timestamp::MAX);
        format!("{timestamp:.3}")
    }
}

impl Serialize for Instant {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text())
    }
}

impl From<UnixMillis> for Instant {
    fn from(instant: UnixMillis) -> Self {
        Self(instant)
    }
}

/// Reads an RFC 3339 instant of a request.
pub(crate) fn parse(text: &str) -> Option<UnixMillis> {
    let timestamp: jiff::Timestamp = text.parse().ok()?;
    u64::try_from(timestamp.as_millisecond()).ok().map(UnixMillis::new)
}

/// In an OpenAPI document: a string with format `date-time`.
impl utoipa::PartialSchema for Instant {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        utoipa::openapi::ObjectBuilder::new()
            .schema_type(utoipa::openapi::schema::Type::String)
            .format(Some(utoipa::openapi::SchemaFormat::KnownFormat(utoipa::openapi::KnownFormat::DateTime)))
            .into()
    }
}

impl utoipa::ToSchema for Instant {
    fn name() -> std::borrow::Cow<'static, str> {
        "Instant".into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instant_is_written_with_milliseconds_and_read_back() {
        let instant = UnixMillis::new(1_795_000_000_120);
        assert_eq!(Instant(instant).text(), "2026-11-18T11:06:40.120Z");
        assert_eq!(parse(&Instant(instant).text()), Some(instant));
        assert_eq!(parse("2026-11-18T12:06:40.12+01:00"), Some(instant));
        assert_eq!(parse("yesterday"), None);
        assert_eq!(Instant(UnixMillis::new(u64::MAX)).text().len(), 24);
    }
}
