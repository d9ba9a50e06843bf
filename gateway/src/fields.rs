//! The header fields of a request wherever they lie: in a parsed map, or as they came over the wire.
//!
//! What decides over requests asks through this, so that each rule exists once for both. Not here: the rules.

use http::HeaderMap;

/// Fields of one request. Names are asked for in lower case and found in any.
pub trait Fields {
    /// The values of one name, in order.
    fn values<'f>(&'f self, name: &'static str) -> impl Iterator<Item = &'f [u8]>;

    /// Everything, the values of one name in order.
    fn pairs(&self) -> impl Iterator<Item = (&[u8], &[u8])>;

    /// The first value of one name.
    fn first(&self, name: &'static str) -> Option<&[u8]> {
        self.values(name).next()
    }
}

impl Fields for HeaderMap {
    fn values<'f>(&'f self, name: &'static str) -> impl Iterator<Item = &'f [u8]> {
        self.get_all(name).into_iter().map(http::HeaderValue::as_bytes)
    }

    fn pairs(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.iter().map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes()))
    }

    fn first(&self, name: &'static str) -> Option<&[u8]> {
        self.get(name).map(http::HeaderValue::as_bytes)
    }
}

/// Fields of a test, as somebody would write them.
#[cfg(test)]
impl Fields for Vec<(&str, &str)> {
    fn values<'f>(&'f self, name: &'static str) -> impl Iterator<Item = &'f [u8]> {
        self.iter().filter(move |(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_bytes())
    }

    fn pairs(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes()))
    }
}
