//! Messages on a byte stream: four bytes of length, big-endian, and so many bytes of JSON. For whoever speaks to a host, and for
//! hosts that speak to their keepers.

use std::io;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use zeroize::Zeroizing;

/// One message, but for a call of the control plane.
pub const FRAME_BYTES_MAX: usize = 1024 * 1024;
/// One call of the control plane. A wake order is the longest: a manifest of at most 48 KiB and the values of its secrets,
/// 4 KiB each of a project's 200 and its workspace's 200, each byte of which may take six in JSON.
const CALL_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Writes one message. Not safe to cancel.
///
/// # Errors
/// Where it is longer than [`FRAME_BYTES_MAX`], or the stream takes no more.
pub async fn write<W: AsyncWrite + Unpin>(to: &mut W, message: &impl Serialize) -> io::Result<()> {
    write_up_to(FRAME_BYTES_MAX, to, message).await
}

/// Writes one call. Not safe to cancel.
///
/// # Errors
/// As [`write`], with a higher limit.
pub async fn write_call<W: AsyncWrite + Unpin>(to: &mut W, call: &impl Serialize) -> io::Result<()> {
    write_up_to(CALL_BYTES_MAX, to, call).await
}

async fn write_up_to<W: AsyncWrite + Unpin>(bytes_max: usize, to: &mut W, message: &impl Serialize) -> io::Result<()> {
    let mut frame = Zeroizing::new(vec![0; 4]);
    serde_json::to_writer(&mut *frame, message)?;
    let length = frame.len() - 4;
    if length > bytes_max {
        let why = format!("a message of {length} bytes; {bytes_max} are allowed");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    }
    let prefix = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
    frame[..4].copy_from_slice(&prefix);
    to.write_all(&frame).await?;
    to.flush().await
}

/// The next message, or `None` where the stream ended between two. Not safe to cancel.
///
/// # Errors
/// Where it is none, longer than [`FRAME_BYTES_MAX`], or cut off.
pub async fn read<T: DeserializeOwned, R: AsyncRead + Unpin>(from: &mut R) -> io::Result<Option<T>> {
    read_up_to(FRAME_BYTES_MAX, from).await
}

async fn read_up_to<T: DeserializeOwned, R: AsyncRead + Unpin>(
    bytes_max: usize,
    from: &mut R,
) -> io::Result<Option<T>> {
    let mut prefix = [0; 4];
    match from.read(&mut prefix[..1]).await? {
        0 => return Ok(None),
        _ => from.read_exact(&mut prefix[1..]).await?,
    };
    let length = u32::from_be_bytes(prefix) as usize;
    if length > bytes_max {
        let why = format!("a message of {length} bytes was announced; {bytes_max} are allowed");
        return Err(io::Error::new(io::ErrorKind::InvalidData, why));
    }
    let mut frame = Zeroizing::new(Vec::new());
    // Grows as bytes come: an announcement alone takes no memory.
    let read = from.take(length as u64).read_to_end(&mut frame).await?;
    if read < length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    serde_json::from_slice(&frame).map(Some).map_err(|error| {
        // What did not parse may hold a secret; where it did not parse does not.
        let why = format!("a message that is none, at byte {}", error.column());
        io::Error::new(io::ErrorKind::InvalidData, why)
    })
}

/// The next message, which must come.
///
/// # Errors
/// As [`read`], and at the stream's end.
pub async fn expect<T: DeserializeOwned, R: AsyncRead + Unpin>(from: &mut R) -> io::Result<T> {
    read(from).await?.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

/// The next call, which must come.
///
/// # Errors
/// As [`expect`], with a higher limit.
pub async fn expect_call<T: DeserializeOwned, R: AsyncRead + Unpin>(from: &mut R) -> io::Result<T> {
    read_up_to(CALL_BYTES_MAX, from).await?.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn messages_are_read_back_and_the_end_is_an_end() {
        let mut written = Vec::new();
        write(&mut written, &"one").await.unwrap();
        write(&mut written, &["two"]).await.unwrap();
        let mut from = written.as_slice();
        assert_eq!(read::<String, _>(&mut from).await.unwrap().unwrap(), "one");
        assert_eq!(read::<Vec<String>, _>(&mut from).await.unwrap().unwrap(), ["two"]);
        assert!(read::<String, _>(&mut from).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn a_call_may_be_longer_than_any_other_message() {
        let order = vec!["\u{1}".repeat(4 * 1024); 400];
        assert_eq!(write(&mut Vec::new(), &order).await.unwrap_err().kind(), io::ErrorKind::InvalidInput);
        let mut written = Vec::new();
        write_call(&mut written, &order).await.unwrap();
        assert_eq!(expect_call::<Vec<String>, _>(&mut written.as_slice()).await.unwrap(), order);
        let mut long = written.as_slice();
        assert_eq!(read::<Vec<String>, _>(&mut long).await.unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[tokio::test]
    async fn a_length_beyond_the_limit_and_a_cut_message_are_refused() {
        let mut long: &[u8] = &[0xff, 0xff, 0xff, 0xff, b'"'];
        assert_eq!(read::<String, _>(&mut long).await.unwrap_err().kind(), io::ErrorKind::InvalidData);
        for cut in [&[0, 0, 0][..], &[0, 0, 0, 9, b'"', b'a']] {
            let mut from = cut;
            assert_eq!(read::<String, _>(&mut from).await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        }
        let mut none: &[u8] = b"\0\0\0\x08\"secret!";
        assert!(!read::<String, _>(&mut none).await.unwrap_err().to_string().contains("secret"));
        let too_long = "x".repeat(FRAME_BYTES_MAX);
        assert_eq!(write(&mut Vec::new(), &too_long).await.unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
