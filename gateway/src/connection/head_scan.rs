//! Reads the head of one HTTP/1 request as it came over the wire and says whether it has exactly one meaning.
//!
//! hyper accepts and normalises several spellings that other servers read differently (bare LF, Transfer-Encoding
//! beside Content-Length, two Host headers). Whatever could be read in two ways is refused here, before hyper sees it.
//!
//! Not here: what the request asks for (routing, rights), or where the bytes come from (`guarded_io`).

use crate::denial::ProtocolFault;

/// Longest accepted head: request line, headers and the empty line.
pub const HEAD_BYTES_MAX: usize = 16 * 1024;
/// Most header lines of one request.
pub const HEADERS_MAX: usize = 100;

/// What the beginning of `bytes` is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum HeadScan {
    /// The empty line has not come yet, and nothing so far is wrong.
    Incomplete,
    Complete(Head),
    Refused(ProtocolFault),
}

/// A head that may pass: where its parts lie, and what follows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Head {
    /// Bytes of the head with its empty line.
    pub(crate) length: usize,
    pub(crate) framing: Framing,
    pub(crate) upgrade: bool,
    /// The method stands at the very beginning; one space, and the target follows.
    pub(crate) method_length: usize,
    pub(crate) target_length: usize,
    pub(crate) http_1_0: bool,
    /// It waits for `100 Continue`.
    pub(crate) expects: bool,
}

/// Where a header line lies in its head: a head has at most 16 KiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Field {
    name: (u16, u16),
    value: (u16, u16),
}

impl Field {
    /// Its name in the bytes that were scanned.
    pub(crate) fn name(self, bytes: &[u8]) -> &[u8] {
        &bytes[usize::from(self.name.0)..usize::from(self.name.1)]
    }

    /// Its value without blanks around it.
    pub(crate) fn value(self, bytes: &[u8]) -> &[u8] {
        &bytes[usize::from(self.value.0)..usize::from(self.value.1)]
    }

    fn new(name: std::ops::Range<usize>, value: std::ops::Range<usize>) -> Self {
        // Within a head, so they fit.
        let short = |range: std::ops::Range<usize>| (range.start as u16, range.end as u16);
        Self { name: short(name), value: short(value) }
    }

    /// The whole line with its CRLF, where it is written as most write it: one blank behind the colon and no other.
    pub(crate) fn whole(self, bytes: &[u8]) -> Option<&[u8]> {
        let line = bytes.get(usize::from(self.name.0)..usize::from(self.value.1) + 2)?;
        let colon = self.name_length();
        let usual = self.value.0 == self.name.1 + 2 && line[colon..].starts_with(b": ") && line.ends_with(b"\r\n");
        usual.then_some(line)
    }

    pub(crate) fn name_length(self) -> usize {
        usize::from(self.name.1 - self.name.0)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    Empty,
    Length(u64),
    Chunked,
}

/// Facts gathered line by line.
#[derive(Default)]
struct Facts {
    host: bool,
    content_length: Option<u64>,
    chunked: bool,
    upgrade: bool,
    expects: bool,
}

/// Scans from the first byte of a request. Costs one pass; called again with more bytes after `Incomplete`.
pub(crate) fn scan(bytes: &[u8]) -> HeadScan {
    scan_with(bytes, |_| {})
}

/// The same, and `found` is told of each header line. What it was told counts only where the head is complete.
pub(crate) fn scan_with(bytes: &[u8], found: impl FnMut(Field)) -> HeadScan {
    let window = &bytes[..bytes.len().min(HEAD_BYTES_MAX)];
    match scan_lines(window, found) {
        Ok(Some(head)) => HeadScan::Complete(head),
        Ok(None) if bytes.len() >= HEAD_BYTES_MAX => HeadScan::Refused(ProtocolFault::HeadTooLarge),
        Ok(None) => HeadScan::Incomplete,
        Err(fault) => HeadScan::Refused(fault),
    }
}

fn scan_lines(bytes: &[u8], mut found: impl FnMut(Field)) -> Result<Option<Head>, ProtocolFault> {
    // One look at a whole head costs less than one at each value. Where that finds something, or anything else is
    // wrong or missing, the lines say in their order what it is.
    let mut fields = 0;
    let counted = |field| {
        fields += 1;
        found(field);
    };
    match read_lines(bytes, false, counted) {
        Ok(Some(head)) if is_clean(&bytes[..head.length], fields + 2) => Ok(Some(head)),
        Ok(_) | Err(_) => read_lines(bytes, true, |_| {}),
    }
}

fn read_lines(bytes: &[u8], checks_values: bool, mut found: impl FnMut(Field)) -> Result<Option<Head>, ProtocolFault> {
    let Some((line, mut at)) = next_line(bytes, 0)? else {
        // A wrong first byte is known before its line ends: nobody waits for the rest of a TLS hello or a frame.
        return match bytes.first() {
            Some(first) if !is_token(*first) => Err(ProtocolFault::RequestLine),
            _ => Ok(None),
        };
    };
    let request = RequestLine::parse(line)?;
    let mut facts = Facts::default();
    let mut count = 0;
    loop {
        let Some((line, after)) = next_line(bytes, at)? else { return Ok(None) };
        let begin = std::mem::replace(&mut at, after);
        if line.is_empty() {
            break;
        }
        count += 1;
        if count > HEADERS_MAX {
            return Err(ProtocolFault::TooManyHeaders);
        }
        found(read_header(line, begin, checks_values, &mut facts)?);
    }
    conclude(&request, &facts, at).map(Some)
}

/// The line that starts at `from` without its CRLF, and where the next one starts.
fn next_line(bytes: &[u8], from: usize) -> Result<Option<(&[u8], usize)>, ProtocolFault> {
    let rest = &bytes[from..];
    let Some(end) = memchr::memchr(b'\n', rest) else { return Ok(None) };
    match rest[..end].split_last() {
        Some((b'\r', line)) => Ok(Some((line, from + end + 1))),
        _ => Err(ProtocolFault::BareLineFeed),
    }
}

struct RequestLine<'a> {
    method: &'a [u8],
    target: &'a [u8],
    http_1_0: bool,
}

impl<'a> RequestLine<'a> {
    fn parse(line: &'a [u8]) -> Result<Self, ProtocolFault> {
        let fault = ProtocolFault::RequestLine;
        let method_end = memchr::memchr(b' ', line).ok_or(fault)?;
        let (method, rest) = (&line[..method_end], &line[method_end + 1..]);
        let target_end = memchr::memchr(b' ', rest).ok_or(fault)?;
        let (target, version) = (&rest[..target_end], &rest[target_end + 1..]);
        let http_1_0 = match version {
            b"HTTP/1.1" => false,
            b"HTTP/1.0" => true,
            _ => return Err(ProtocolFault::Version),
        };
        if method.is_empty() || !method.iter().copied().all(is_token) {
            return Err(fault);
        }
        // The name under which a refused request is handed on; nobody outside may use it.
        if method == super::REFUSED_METHOD.as_bytes() {
            return Err(ProtocolFault::Method);
        }
        // A fragment is the browser's own: some servers cut it off, others take it for a part of the path.
        if target.is_empty() || !is_visible(target) || memchr::memchr(b'#', target).is_some() {
            return Err(ProtocolFault::Target);
        }
        Ok(Self { method, target, http_1_0 })
    }
}

/// A line that begins at `begin` of the head.
fn read_header(line: &[u8], begin: usize, checks_value: bool, facts: &mut Facts) -> Result<Field, ProtocolFault> {
    if matches!(line[0], b' ' | b'\t') {
        return Err(ProtocolFault::FoldedHeader);
    }
    // The first byte that no name may hold has to be the colon.
    let colon = line.iter().position(|byte| !is_token(*byte)).ok_or(ProtocolFault::HeaderName)?;
    if colon == 0 || line[colon] != b':' {
        return Err(ProtocolFault::HeaderName);
    }
    let (name, rest) = (&line[..colon], &line[colon + 1..]);
    if checks_value && holds_control(rest) {
        return Err(ProtocolFault::HeaderValue);
    }
    let value = trim(rest);
    // Only these lengths can be a name that decides something.
    let is = |known: &[u8]| name.eq_ignore_ascii_case(known);
    match name.len() {
        4 if is(b"host") => {
            if std::mem::replace(&mut facts.host, true) {
                return Err(ProtocolFault::RepeatedHost);
            }
            if value.is_empty() {
                return Err(ProtocolFault::InvalidHost);
            }
        }
        6 if is(b"expect") => {
            let continues = value.eq_ignore_ascii_case(b"100-continue");
            facts.expects = true;
            continues.then_some(()).ok_or(ProtocolFault::Expectation)?;
        }
        7 if is(b"upgrade") => {
            let repeated = std::mem::replace(&mut facts.upgrade, true);
            let websocket = value.eq_ignore_ascii_case(b"websocket");
            (websocket && !repeated).then_some(()).ok_or(ProtocolFault::UpgradeToken)?;
        }
        14 if is(b"content-length") => {
            let length = parse_length(value).ok_or(ProtocolFault::ContentLength)?;
            let repeated = facts.content_length.replace(length).is_some();
            (!repeated).then_some(()).ok_or(ProtocolFault::RepeatedContentLength)?;
        }
        17 if is(b"transfer-encoding") => {
            let repeated = std::mem::replace(&mut facts.chunked, true);
            let chunked = value.eq_ignore_ascii_case(b"chunked");
            (chunked && !repeated).then_some(()).ok_or(ProtocolFault::TransferEncoding)?;
        }
        _ => {}
    }
    let blanks = rest.iter().take_while(|byte| matches!(byte, b' ' | b'\t')).count();
    let value_begin = if value.is_empty() { begin + colon + 1 } else { begin + colon + 1 + blanks };
    Ok(Field::new(begin..begin + colon, value_begin..value_begin + value.len()))
}

fn conclude(request: &RequestLine<'_>, facts: &Facts, length: usize) -> Result<Head, ProtocolFault> {
    if !facts.host {
        return Err(ProtocolFault::MissingHost);
    }
    match request.method {
        b"CONNECT" => return Err(ProtocolFault::Connect),
        b"TRACE" => return Err(ProtocolFault::Method),
        _ => {}
    }
    check_target(request)?;
    if facts.chunked && facts.content_length.is_some() {
        return Err(ProtocolFault::LengthAndEncoding);
    }
    let framing = match (facts.chunked, facts.content_length) {
        (true, _) => Framing::Chunked,
        (false, None | Some(0)) => Framing::Empty,
        (false, Some(length)) => Framing::Length(length),
    };
    if request.http_1_0 && framing != Framing::Empty {
        return Err(ProtocolFault::OldVersionBody);
    }
    if facts.upgrade && (framing != Framing::Empty || request.method != b"GET" || request.http_1_0) {
        return Err(ProtocolFault::UpgradeToken);
    }
    Ok(Head {
        length,
        framing,
        upgrade: facts.upgrade,
        method_length: request.method.len(),
        target_length: request.target.len(),
        http_1_0: request.http_1_0,
        expects: facts.expects,
    })
}

/// Absolute form is for proxies that clients choose. Two places for one host is one too many, even where they agree:
/// the next server may read the other one.
fn check_target(request: &RequestLine<'_>) -> Result<(), ProtocolFault> {
    let names =
        |scheme: &[u8]| request.target.get(..scheme.len()).is_some_and(|head| head.eq_ignore_ascii_case(scheme));
    match request.target {
        [b'/', ..] => Ok(()),
        b"*" if request.method == b"OPTIONS" => Ok(()),
        _ if names(b"http://") || names(b"https://") => Err(ProtocolFault::AbsoluteForm),
        _ => Err(ProtocolFault::Target),
    }
}

/// 1 to 18 digits and nothing else: no sign, no list, no spaces inside.
fn parse_length(value: &[u8]) -> Option<u64> {
    if value.is_empty() || value.len() > 18 {
        return None;
    }
    value.iter().try_fold(0_u64, |sum, digit| digit.is_ascii_digit().then(|| sum * 10 + u64::from(digit - b'0')))
}

fn trim(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] = value {
        value = rest;
    }
    while let [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

/// Characters of a token (RFC 9110 5.6.2), as a table because it is asked for each byte of each name.
const TOKEN: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = matches!(byte as u8,
            b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z'
            | b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~');
        byte += 1;
    }
    table
};

fn is_token(byte: u8) -> bool {
    TOKEN[usize::from(byte)]
}

/// Whether a head of so many lines, which were read, holds no control characters but those that end its lines. Each of
/// its line feeds follows a return (`next_line`), so whatever is more than two a line stands inside of one; a tab does
/// so rightfully, and `holds_control` will say that.
fn is_clean(head: &[u8], lines: usize) -> bool {
    let (mut controls, mut deleted) = (0, false);
    // No early exit, and sums that fit into a byte: the compiler looks at many bytes at once.
    for chunk in head.chunks(128) {
        let (mut low, mut del) = (0_u8, false);
        for &byte in chunk {
            low += u8::from(byte < 0x20);
            del |= byte == 0x7f;
        }
        controls += usize::from(low);
        deleted |= del;
    }
    controls == 2 * lines && !deleted
}

/// No early exit, so that the compiler can look at many bytes at once.
fn holds_control(value: &[u8]) -> bool {
    value.iter().fold(false, |found, &byte| found | ((byte < 0x20) & (byte != b'\t')) | (byte == 0x7f))
}

fn is_visible(target: &[u8]) -> bool {
    target.iter().fold(true, |visible, &byte| visible & (byte > 0x20) & (byte < 0x7f))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn refused(head: &str) -> ProtocolFault {
        match scan(head.as_bytes()) {
            HeadScan::Refused(fault) => fault,
            other => panic!("{head:?} gave {other:?}"),
        }
    }

    fn complete(head: &str) -> Head {
        match scan(head.as_bytes()) {
            HeadScan::Complete(head) => head,
            other => panic!("{head:?} gave {other:?}"),
        }
    }

    #[test]
    fn a_browsers_request_passes_and_its_framing_is_known() {
        let get = "GET /a?b=c HTTP/1.1\r\nHost: web--a--b.dev.localhost:80\r\nAccept: */*\r\nCookie: a=b\r\n\r\n";
        let expected = Head {
            length: get.len(),
            framing: Framing::Empty,
            upgrade: false,
            method_length: 3,
            target_length: 6,
            http_1_0: false,
            expects: false,
        };
        assert_eq!(complete(get), expected);
        let post = "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 12\r\n\r\nhello";
        assert_eq!(complete(post).framing, Framing::Length(12));
        assert_eq!(complete(post).length, post.len() - 5);
        let chunked = "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: Chunked\r\n\r\n";
        assert_eq!(complete(chunked).framing, Framing::Chunked);
        assert!(complete("GET / HTTP/1.1\r\nHost: h\r\nUpgrade: WebSocket\r\nConnection: upgrade\r\n\r\n").upgrade);
        assert_eq!(complete("OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n").framing, Framing::Empty);
    }

    #[test]
    fn what_can_be_read_in_two_ways_is_refused_with_its_reason() {
        use ProtocolFault::*;
        let table: &[(&str, ProtocolFault)] = &[
            ("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", RepeatedContentLength),
            ("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n", RepeatedContentLength),
            ("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1, 1\r\n\r\n", ContentLength),
            ("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: +1\r\n\r\n", ContentLength),
            ("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: -1\r\n\r\n", ContentLength),
            ("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 0x1\r\n\r\n", ContentLength),
            ("POST / HTTP/1.1\r\nHost: h\r\nContent-Length:\r\n\r\n", ContentLength),
            ("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1111111111111111111\r\n\r\n", ContentLength),
            (
                "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
                LengthAndEncoding,
            ),
            (
                "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nContent-Length: 0\r\n\r\n",
                LengthAndEncoding,
            ),
            ("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", TransferEncoding),
            ("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: identity\r\n\r\n", TransferEncoding),
            ("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: xchunked\r\n\r\n", TransferEncoding),
            (
                "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
                TransferEncoding,
            ),
            ("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding : chunked\r\n\r\n", HeaderName),
            ("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding\u{b}: chunked\r\n\r\n", HeaderName),
            ("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: \u{b}chunked\r\n\r\n", HeaderValue),
            ("GET / HTTP/1.1\r\nHost: h\r\nX: a\r\n b\r\n\r\n", FoldedHeader),
            ("GET / HTTP/1.1\r\n Host: h\r\n\r\n", FoldedHeader),
            ("GET / HTTP/1.1\nHost: h\n\n", BareLineFeed),
            ("GET / HTTP/1.1\r\nHost: h\nX: y\r\n\r\n", BareLineFeed),
            ("GET / HTTP/1.1\r\nHost: h\r\n\n", BareLineFeed),
            ("GET / HTTP/1.1\r\nHost: h\r\nX: a\rb\r\n\r\n", HeaderValue),
            ("GET / HTTP/1.1\r\nHost: h\r\nX: a\0b\r\n\r\n", HeaderValue),
            ("GET / HTTP/1.1\r\nHost: h\r\nHost: h\r\n\r\n", RepeatedHost),
            ("GET / HTTP/1.1\r\nHost:\r\n\r\n", InvalidHost),
            ("GET / HTTP/1.1\r\nX: y\r\n\r\n", MissingHost),
            ("GET / HTTP/1.0\r\n\r\n", MissingHost),
            ("GET http://evil/ HTTP/1.1\r\nHost: h\r\n\r\n", AbsoluteForm),
            ("GET http://h@evil/ HTTP/1.1\r\nHost: h\r\n\r\n", AbsoluteForm),
            ("GET http://h/ HTTP/1.1\r\nHost: h\r\n\r\n", AbsoluteForm),
            ("GET HTTPS://h/ HTTP/1.1\r\nHost: h\r\n\r\n", AbsoluteForm),
            ("GET ftp://h/ HTTP/1.1\r\nHost: h\r\n\r\n", Target),
            ("GET evil HTTP/1.1\r\nHost: h\r\n\r\n", Target),
            ("GET * HTTP/1.1\r\nHost: h\r\n\r\n", Target),
            ("GET /\u{7f} HTTP/1.1\r\nHost: h\r\n\r\n", Target),
            ("GET /é HTTP/1.1\r\nHost: h\r\n\r\n", Target),
            ("GET /a#b HTTP/1.1\r\nHost: h\r\n\r\n", Target),
            ("CONNECT h:443 HTTP/1.1\r\nHost: h\r\n\r\n", Connect),
            ("TRACE / HTTP/1.1\r\nHost: h\r\n\r\n", Method),
            ("ENVFORGE-REFUSED / HTTP/1.1\r\nHost: h\r\n\r\n", Method),
            ("GET / HTTP/1.1\r\nHost: h\r\nUpgrade: h2c\r\n\r\n", UpgradeToken),
            ("GET / HTTP/1.1\r\nHost: h\r\nUpgrade: websocket, h2c\r\n\r\n", UpgradeToken),
            ("GET / HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nUpgrade: websocket\r\n\r\n", UpgradeToken),
            ("POST / HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\n\r\n", UpgradeToken),
            ("GET / HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nContent-Length: 3\r\n\r\n", UpgradeToken),
            ("POST / HTTP/1.0\r\nHost: h\r\nContent-Length: 3\r\n\r\n", OldVersionBody),
            ("POST / HTTP/1.0\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n", OldVersionBody),
            ("GET / HTTP/1.1\r\nHost: h\r\nExpect: 200-ok\r\n\r\n", Expectation),
            ("GET /  HTTP/1.1\r\nHost: h\r\n\r\n", Version),
            ("GET / HTTP/2.0\r\nHost: h\r\n\r\n", Version),
            ("GET / HTTP/1.1 \r\nHost: h\r\n\r\n", Version),
            ("GET /\r\nHost: h\r\n\r\n", RequestLine),
            ("\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n", RequestLine),
            ("G(T / HTTP/1.1\r\nHost: h\r\n\r\n", RequestLine),
            ("\u{16}\u{3}\u{1}", RequestLine),
        ];
        for (head, expected) in table {
            assert_eq!(refused(head), *expected, "{head:?}");
        }
    }

    #[test]
    fn a_long_head_and_many_headers_are_refused() {
        let long = format!("GET / HTTP/1.1\r\nHost: h\r\nX: {}\r\n\r\n", "a".repeat(HEAD_BYTES_MAX));
        assert_eq!(refused(&long), ProtocolFault::HeadTooLarge);
        let many = format!("GET / HTTP/1.1\r\nHost: h\r\n{}\r\n", "X: y\r\n".repeat(HEADERS_MAX));
        assert_eq!(refused(&many), ProtocolFault::TooManyHeaders);
    }

    #[test]
    fn where_header_lines_lie_is_told() {
        let head = b"GET / HTTP/1.1\r\nHost: h\r\nA:\r\nB:  \t \r\nC:\tc d \r\nExpect: 100-continue\r\n\r\n";
        let mut fields = Vec::new();
        let HeadScan::Complete(scanned) = scan_with(head, |field| fields.push(field)) else { panic!("not complete") };
        assert!(scanned.expects && !scanned.http_1_0);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let found: Vec<_> = fields.iter().map(|field| (text(field.name(head)), text(field.value(head)))).collect();
        let expected = [("Host", "h"), ("A", ""), ("B", ""), ("C", "c d"), ("Expect", "100-continue")];
        let wholes: Vec<_> = fields.iter().map(|field| field.whole(head).map(text)).collect();
        assert_eq!(
            wholes,
            [Some("Host: h\r\n".to_owned()), None, None, None, Some("Expect: 100-continue\r\n".to_owned())]
        );
        assert_eq!(found, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }

    proptest! {
        /// Cutting a good head anywhere never refuses it: slow clients are not attackers.
        #[test]
        fn every_beginning_of_a_good_head_is_incomplete(cut in 0_usize..95) {
            let head = "POST /path?query=1 HTTP/1.1\r\nHost: web--a--b.dev\r\nContent-Length: 12\r\nCookie: a=b; c=d\r\n\r\n";
            prop_assume!(cut < head.len());
            prop_assert_eq!(scan(&head.as_bytes()[..cut]), HeadScan::Incomplete);
        }

        /// What the look at everything lets pass, the look at each value would have let pass.
        #[test]
        fn a_clean_head_holds_no_control_in_any_value(
            values in proptest::collection::vec(proptest::collection::vec(prop_oneof![any::<u8>(), Just(b'\r'), Just(b'\t'), Just(b'a')], 0..20), 0..6),
            behind in 0_usize..3,
        ) {
            let mut head = b"GET / HTTP/1.1\r\nHost: h\r\n".to_vec();
            for value in &values {
                head.extend_from_slice(b"X: ");
                head.extend(value.iter().filter(|byte| **byte != b'\n'));
                head.extend_from_slice(b"\r\n");
            }
            head.extend_from_slice(b"\r\n");
            // What is behind a head changes nothing about it.
            head.extend_from_slice(&b"\n".repeat(behind));
            let controls = |value: &Vec<u8>| {
                let kept: Vec<u8> = value.iter().copied().filter(|byte| *byte != b'\n').collect();
                holds_control(&kept)
            };
            let refused = scan(&head) == HeadScan::Refused(ProtocolFault::HeaderValue);
            prop_assert_eq!(refused, values.iter().any(controls));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = scan(&bytes);
        }
    }
}
