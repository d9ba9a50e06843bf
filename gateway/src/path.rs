//! Whether a request path has one meaning, and whether a prefix can decide over it.
//!
//! Nothing is normalised: what could be read in two ways is refused, and the app gets the path byte for byte.

use crate::denial::Denial;

/// A path that may be forwarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CheckedPath<'a> {
    path: &'a str,
    /// Holds something that another server may read as another path: `%2f`, `%5c`, `;`, `//`, an encoded letter.
    doubtful: bool,
}

impl<'a> CheckedPath<'a> {
    /// Refuses whatever is not visible ASCII, control characters that are encoded, backslashes and dot segments (also encoded) at once.
    pub(crate) fn new(path: &'a str) -> Result<Self, Denial> {
        let bytes = path.as_bytes();
        // `*` and the like: nothing to forward.
        if bytes.first() != Some(&b'/') || !bytes.iter().all(u8::is_ascii_graphic) {
            return Err(Denial::AmbiguousPath);
        }
        let mut doubtful = false;
        let mut at = 0;
        while let Some(offset) = bytes[at..].iter().position(|byte| matches!(byte, b'%' | b';' | b'\\' | b'/')) {
            at += offset;
            let rest = &bytes[at..];
            match rest[0] {
                b';' => doubtful = true,
                b'\\' => return Err(Denial::AmbiguousPath),
                b'/' => {
                    if rest.get(1) == Some(&b'/') {
                        doubtful = true;
                    }
                    if is_dot_segment(&rest[1..]) {
                        return Err(Denial::AmbiguousPath);
                    }
                }
                _ => match decode(rest) {
                    None => return Err(Denial::AmbiguousPath),
                    Some(0..=0x1f | 0x7f) => return Err(Denial::AmbiguousPath),
                    // Whoever decodes before splitting walks up here.
                    Some(b'/' | b'\\') if is_dot_segment(&rest[3..]) => return Err(Denial::AmbiguousPath),
                    Some(b'/' | b'\\' | b';' | b'.' | b'%') => doubtful = true,
                    Some(byte) if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'~') => doubtful = true,
                    Some(_) => {}
                },
            }
            at += 1;
        }
        Ok(Self { path, doubtful })
    }

    pub(crate) fn as_str(self) -> &'a str {
        self.path
    }

    /// The path where its prefix decides which service or family it belongs to.
    pub(crate) fn for_prefix(self) -> Result<&'a str, Denial> {
        if self.doubtful { Err(Denial::AmbiguousPath) } else { Ok(self.path) }
    }
}

/// The byte of `%41`; `None` where two hexadecimal digits do not follow.
fn decode(bytes: &[u8]) -> Option<u8> {
    let high = char::from(*bytes.get(1)?).to_digit(16)?;
    let low = char::from(*bytes.get(2)?).to_digit(16)?;
    u8::try_from(high * 16 + low).ok()
}

/// Whether a segment is `.` or `..`, with dots as such or encoded, up to the next separator of any kind.
fn is_dot_segment(mut rest: &[u8]) -> bool {
    let mut dots = 0;
    loop {
        rest = match rest {
            [b'.', after @ ..] | [b'%', b'2', b'e' | b'E', after @ ..] => after,
            [] | [b'/' | b';' | b'\\', ..] | [b'%', b'2', b'f' | b'F', ..] | [b'%', b'5', b'c' | b'C', ..] => {
                return dots == 1 || dots == 2;
            }
            _ => return false,
        };
        dots += 1;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ordinary_paths_pass_byte_for_byte() {
        for path in
            ["/", "/a/b", "/.well-known/x", "/a.b/..c/...", "/caf%C3%A9", "/a%20b", "/@vite/client", "/a:b", "/-/~x"]
        {
            let checked = CheckedPath::new(path).unwrap();
            assert_eq!(checked.for_prefix(), Ok(path), "{path}");
        }
    }

    #[test]
    fn what_is_never_one_path_is_refused() {
        for path in [
            "",
            "*",
            "a",
            "/..",
            "/.",
            "/a/../b",
            "/a/./b",
            "/a/..",
            "/%2e%2e/b",
            "/%2E./b",
            "/.%2e",
            "/a/%2e",
            "/..;/b",
            "/..%2fb",
            "/..%5cb",
            "/a%2f..",
            "/a%2F.%2eb/%2f./c",
            "/a%5c%2e%2e%5cb",
            "/a\\b",
            "/%00",
            "/a%0d%0ab",
            "/%7f",
            "/%",
            "/%2",
            "/%zz",
            "/a/%1f",
            "/a\0b",
            "/a\u{7f}",
            "/a b",
            "/caf\u{e9}",
        ] {
            assert_eq!(CheckedPath::new(path), Err(Denial::AmbiguousPath), "{path}");
        }
    }

    #[test]
    fn what_a_prefix_may_not_decide_over_is_known() {
        for path in
            ["//api", "/x//y", "/api%2fx", "/api%2Fx", "/x%5cy", "/api;x", "/%61pi", "/x%3by", "/%2561pi", "/a%2eb"]
        {
            assert_eq!(CheckedPath::new(path).unwrap().for_prefix(), Err(Denial::AmbiguousPath), "{path}");
        }
    }

    proptest! {
        /// Whatever passes for a prefix decodes to a path with the same segments' beginnings.
        #[test]
        fn a_path_for_prefixes_reads_the_same_decoded(path in "/[a-c/.%;2fe05\\\\]{0,12}") {
            if let Ok(passed) = CheckedPath::new(&path).and_then(CheckedPath::for_prefix) {
                let decoded = percent_encoding::percent_decode_str(passed).decode_utf8_lossy().into_owned();
                prop_assert_eq!(decoded.matches('/').count(), passed.matches('/').count());
                prop_assert!(!decoded.contains("//") && !decoded.contains('\\') && !decoded.contains('\0'));
                prop_assert!(!decoded.split('/').any(|segment| segment == "." || segment == ".."));
            }
        }
    }
}
