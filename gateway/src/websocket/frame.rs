//! Follows frame boundaries (RFC 6455 5.2) in one direction, so that a close frame of ours never lands inside
//! somebody else's frame. Payload is skipped, not looked at.

/// Where in the stream of frames a direction stands.
#[derive(Debug, Default)]
pub(crate) struct FrameTracker {
    header: [u8; 14],
    header_length: usize,
    payload_remaining: u64,
    /// The other side has sent a close frame: nothing may follow it.
    closed: bool,
    fragmented: bool,
}

impl FrameTracker {
    pub(crate) fn advance(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.payload_remaining > 0 {
                let skipped = self.payload_remaining.min(bytes.len() as u64);
                self.payload_remaining -= skipped;
                bytes = &bytes[skipped as usize..];
                continue;
            }
            self.header[self.header_length] = bytes[0];
            self.header_length += 1;
            bytes = &bytes[1..];
            if let Some(length) = self.payload_length() {
                let opcode = self.header[0] & 0x0f;
                self.closed |= opcode == 0x8;
                if opcode < 0x8 {
                    self.fragmented = self.header[0] & 0x80 == 0;
                }
                self.payload_remaining = length;
                self.header_length = 0;
            }
        }
    }

    /// The payload's length once the header is complete.
    fn payload_length(&self) -> Option<u64> {
        if self.header_length < 2 {
            return None;
        }
        let mask = if self.header[1] & 0x80 == 0 { 0 } else { 4 };
        let (extended, length) = match self.header[1] & 0x7f {
            126 => (2, u64::from(u16::from_be_bytes([self.header[2], self.header[3]]))),
            127 => {
                let mut bytes = [0_u8; 8];
                bytes.copy_from_slice(&self.header[2..10]);
                (8, u64::from_be_bytes(bytes))
            }
            short => (0, u64::from(short)),
        };
        (self.header_length == 2 + extended + mask).then_some(length)
    }

    /// Whether a close frame may be written here. Control frames may stand between fragments, so a message under way
    /// does not hinder.
    pub(crate) fn may_close(&self) -> bool {
        self.payload_remaining == 0 && self.header_length == 0 && !self.closed
    }
}

/// An unmasked close frame, as servers send it. `reason` has at most 123 bytes.
pub(crate) fn close_frame(code: u16, reason: &str) -> Vec<u8> {
    let reason = &reason.as_bytes()[..reason.len().min(123)];
    let mut frame = Vec::with_capacity(4 + reason.len());
    frame.push(0x88);
    // At most 125, so it fits.
    frame.push(2 + reason.len() as u8);
    frame.extend_from_slice(&code.to_be_bytes());
    frame.extend_from_slice(reason);
    frame
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn encode(opcode: u8, masked: bool, payload: usize) -> Vec<u8> {
        let mask_bit = if masked { 0x80 } else { 0 };
        let mut frame = vec![0x80 | opcode];
        match payload {
            0..126 => frame.push(mask_bit | payload as u8),
            126..65536 => {
                frame.push(mask_bit | 126);
                frame.extend_from_slice(&(payload as u16).to_be_bytes());
            }
            _ => {
                frame.push(mask_bit | 127);
                frame.extend_from_slice(&(payload as u64).to_be_bytes());
            }
        }
        if masked {
            frame.extend_from_slice(&[1, 2, 3, 4]);
        }
        frame.resize(frame.len() + payload, 0x88);
        frame
    }

    #[test]
    fn after_a_close_frame_nothing_may_follow() {
        let mut tracker = FrameTracker::default();
        assert!(tracker.may_close());
        tracker.advance(&close_frame(1000, "bye"));
        assert!(!tracker.may_close());
    }

    proptest! {
        /// A close frame is allowed exactly at the ends of frames.
        #[test]
        fn boundaries_are_found_whatever_the_cuts(frames in proptest::collection::vec((prop_oneof![Just(1_u8), Just(2), Just(9)], any::<bool>(), prop_oneof![0_usize..300, Just(65_535), Just(65_536)]), 1..6)) {
            let mut tracker = FrameTracker::default();
            for (opcode, masked, payload) in frames {
                let frame = encode(opcode, masked, payload);
                for (index, byte) in frame.iter().enumerate() {
                    tracker.advance(&[*byte]);
                    prop_assert_eq!(tracker.may_close(), index + 1 == frame.len());
                }
            }
        }
    }
}
