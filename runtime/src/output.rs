//! Output of services: rotating files of bounded size, filled by a copier that never holds a service up.
//!
//! Output may hold secrets. It lies in files of mode 0600 outside the checkout, stands in no error and no report, and is
//! read only by [`tail`], which no link's route reaches.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use envforge_domain::shell::{LogChunk, LogPlace};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;

use crate::config::Config;
use crate::record::blocking;

const CHUNK_BYTES: usize = 64 * 1024;
/// What one `tail` reads at most.
const TAIL_BYTES_MAX: u64 = 1024 * 1024;
pub(crate) const TAIL_LINES_MAX: usize = 10_000;
/// Readings of one `tail` while the file rotates under it; the last one counts as it is.
const TAIL_ATTEMPTS_MAX: usize = 5;

/// `NAME.log`, and older `NAME.log.1` to `NAME.log.N`.
pub(crate) struct RotatingFile {
    directory: PathBuf,
    name: String,
    bytes_max: u64,
    files_max: u32,
    file: File,
    bytes: u64,
}

impl RotatingFile {
    /// Continues the file where an earlier run ended.
    pub(crate) fn open(directory: &Path, name: &str, config: &Config) -> io::Result<Self> {
        let path = path(directory, name, 0);
        let file = append(&path)?;
        let bytes = file.metadata()?.len();
        Ok(Self {
            directory: directory.to_owned(),
            name: name.to_owned(),
            bytes_max: config.log_bytes_max,
            files_max: config.log_files_max,
            file,
            bytes,
        })
    }

    fn write(&mut self, mut chunk: &[u8]) -> io::Result<()> {
        while !chunk.is_empty() {
            if self.bytes >= self.bytes_max {
                self.rotate()?;
            }
            let room = usize::try_from(self.bytes_max - self.bytes).unwrap_or(usize::MAX);
            let (now, later) = chunk.split_at(room.min(chunk.len()));
            self.file.write_all(now)?;
            self.bytes += now.len() as u64;
            chunk = later;
        }
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        for index in (1..self.files_max).rev() {
            match fs::rename(path(&self.directory, &self.name, index - 1), path(&self.directory, &self.name, index)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        self.file = append(&path(&self.directory, &self.name, 0))?;
        // With a single file there is nowhere to move it to.
        self.file.set_len(0)?;
        self.bytes = 0;
        Ok(())
    }
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

fn path(directory: &Path, name: &str, index: u32) -> PathBuf {
    match index {
        0 => directory.join(format!("{name}.log")),
        index => directory.join(format!("{name}.log.{index}")),
    }
}

/// A directory that only this user enters, with its parents.
pub(crate) fn private_directory(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Copies until every holder of the pipe's other end is gone. A disk that takes no more loses output, not the service.
pub(crate) async fn copy(mut source: Receiver, file: RotatingFile) {
    let mut kept = Some((file, Vec::with_capacity(CHUNK_BYTES)));
    while let Some((mut file, mut chunk)) = kept.take() {
        chunk.clear();
        match source.read_buf(&mut chunk).await {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(%error, "a service's output can no longer be read");
                return;
            }
        }
        kept = blocking(move || {
            if let Err(error) = file.write(&chunk) {
                metrics::counter!("service_output_lost_bytes_total").increment(chunk.len() as u64);
                tracing::warn!(%error, "a service's output could not be written");
            }
            chunk.shrink_to(CHUNK_BYTES);
            Ok((file, chunk))
        })
        .await
        .ok();
    }
}

/// The last lines, oldest first; at most 10,000 lines and 1 MiB. `None` where nothing was ever written. Blocking.
///
/// The copier may rotate at any moment, also between two reads: then the reading starts over, a few times at most.
pub(crate) fn tail(directory: &Path, name: &str, lines_max: usize, files_max: u32) -> io::Result<Option<Vec<String>>> {
    Ok(tail_from(directory, name, lines_max, files_max)?.map(|(joined, _)| {
        let text = String::from_utf8_lossy(&joined);
        text.lines().map(str::to_owned).collect()
    }))
}

/// The same as it was written, and where it goes on.
pub(crate) fn tail_from(
    directory: &Path,
    name: &str,
    lines_max: usize,
    files_max: u32,
) -> io::Result<Option<(Vec<u8>, LogPlace)>> {
    let newest = path(directory, name, 0);
    let mut attempt = 1;
    loop {
        let before = inode(&newest)?;
        let lines = read_tail(directory, name, lines_max, files_max)?;
        let undisturbed = before.is_some() && before == inode(&newest)?;
        let nothing = before.is_none() && lines.is_none();
        if undisturbed || nothing || attempt == TAIL_ATTEMPTS_MAX {
            return Ok(lines);
        }
        attempt += 1;
    }
}

fn inode(path: &Path) -> io::Result<Option<u64>> {
    match fs::metadata(path) {
        Ok(metadata) => Ok(Some(metadata.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// What was written since `from`, at most 1 MiB of it. Blocking.
pub(crate) fn since(directory: &Path, name: &str, from: LogPlace, files_max: u32) -> io::Result<LogChunk> {
    // Oldest first: what is renamed meanwhile is met again under its new name, by its number.
    let mut files = Vec::new();
    for index in (0..files_max).rev() {
        match File::open(path(directory, name, index)) {
            Ok(file) => files.push((file.metadata()?.ino(), file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    files.dedup_by_key(|(number, _)| *number);
    let known = files.iter().position(|(number, _)| *number == from.file);
    let (mut chunk, mut room) =
        (LogChunk { next: from, gap: known.is_none() && from.file != 0, ..LogChunk::default() }, TAIL_BYTES_MAX);
    for (number, mut file) in files.into_iter().skip(known.unwrap_or(0)) {
        let length = file.metadata()?.len();
        let mut offset = if number == from.file { from.offset } else { 0 };
        if offset > length {
            // The only file there is begins anew where it is full.
            (offset, chunk.gap) = (0, true);
        }
        file.seek(SeekFrom::Start(offset))?;
        let read = file.take(room).read_to_end(&mut chunk.bytes)? as u64;
        room -= read;
        chunk.next = LogPlace { file: number, offset: offset + read };
        if room == 0 {
            break;
        }
    }
    Ok(chunk)
}

type Tail = (Vec<u8>, LogPlace);

fn read_tail(directory: &Path, name: &str, lines_max: usize, files_max: u32) -> io::Result<Option<Tail>> {
    let lines_max = lines_max.min(TAIL_LINES_MAX);
    let mut newest_first: Vec<Vec<u8>> = Vec::new();
    let (mut room, mut newlines) = (TAIL_BYTES_MAX, 0);
    let mut next = LogPlace::default();
    for index in 0..files_max {
        let mut file = match File::open(path(directory, name, index)) {
            Ok(file) => file,
            // For a moment of each rotation there is no newest file, but there are older ones.
            Err(error) if error.kind() == io::ErrorKind::NotFound && index == 0 => continue,
            Err(error) if error.kind() == io::ErrorKind::NotFound => break,
            Err(error) => return Err(error),
        };
        let metadata = file.metadata()?;
        let (length, number) = (metadata.len(), metadata.ino());
        file.seek(SeekFrom::Start(length.saturating_sub(room)))?;
        let mut bytes = Vec::new();
        file.take(room).read_to_end(&mut bytes)?;
        if newest_first.is_empty() {
            next = LogPlace { file: number, offset: length.saturating_sub(room) + bytes.len() as u64 };
        }
        room = room.saturating_sub(bytes.len() as u64);
        newlines += bytes.iter().filter(|byte| **byte == b'\n').count();
        newest_first.push(bytes);
        // One more than asked for: the first of them may begin in an older file.
        if room == 0 || newlines > lines_max {
            break;
        }
    }
    if newest_first.is_empty() {
        return Ok(None);
    }
    newest_first.reverse();
    let mut joined = newest_first.concat();
    let mut begins: Vec<usize> = std::iter::once(0).chain(line_begins(&joined)).collect();
    if begins.last() == Some(&joined.len()) {
        begins.pop();
    }
    match begins.len().checked_sub(lines_max) {
        Some(first) if first < begins.len() => drop(joined.drain(..begins[first])),
        Some(_) => joined.clear(),
        None => {}
    }
    Ok(Some((joined, next)))
}

/// Where lines begin, but the first.
fn line_begins(bytes: &[u8]) -> impl Iterator<Item = usize> {
    bytes.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(index, _)| index + 1)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn config(bytes_max: u64, files_max: u32) -> Config {
        Config { log_bytes_max: bytes_max, log_files_max: files_max, ..Config::new("/nowhere") }
    }

    #[test]
    fn files_rotate_at_their_bound_and_the_oldest_go() {
        let directory = tempfile::tempdir().unwrap();
        let mut file = RotatingFile::open(directory.path(), "web", &config(100, 3)).unwrap();
        for number in 0..200 {
            file.write(format!("line {number:04}\n").as_bytes()).unwrap();
        }
        let mut sizes: Vec<_> = fs::read_dir(directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().metadata().unwrap())
            .map(|metadata| (metadata.len(), metadata.permissions().mode() & 0o777))
            .collect();
        sizes.sort_unstable();
        assert_eq!(sizes.len(), 3);
        assert!(sizes.iter().all(|(length, mode)| *length <= 100 && *mode == 0o600), "{sizes:?}");
        let tail = tail(directory.path(), "web", 15, 3).unwrap().unwrap();
        let expected: Vec<_> = (185..200).map(|number| format!("line {number:04}")).collect();
        assert_eq!(tail, expected, "a tail crosses file boundaries");
    }

    #[test]
    fn a_single_file_is_emptied_instead_of_moved() {
        let directory = tempfile::tempdir().unwrap();
        let mut file = RotatingFile::open(directory.path(), "web", &config(10, 1)).unwrap();
        file.write(b"0123456789abc").unwrap();
        assert_eq!(fs::read(directory.path().join("web.log")).unwrap(), b"abc");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_reopened_file_counts_what_it_holds() {
        let directory = tempfile::tempdir().unwrap();
        RotatingFile::open(directory.path(), "web", &config(10, 2)).unwrap().write(b"01234567").unwrap();
        RotatingFile::open(directory.path(), "web", &config(10, 2)).unwrap().write(b"89ab").unwrap();
        assert_eq!(fs::read(directory.path().join("web.log")).unwrap(), b"ab");
        assert_eq!(fs::read(directory.path().join("web.log.1")).unwrap(), b"0123456789");
    }

    #[test]
    fn a_tail_in_the_middle_of_a_rotation_reads_the_older_file() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("web.log.1"), "older\n").unwrap();
        assert_eq!(tail(directory.path(), "web", 5, 3).unwrap(), Some(vec!["older".to_owned()]));
    }

    #[test]
    fn whoever_follows_reads_each_byte_once_over_rotations_and_learns_of_what_is_lost() {
        let directory = tempfile::tempdir().unwrap();
        let mut file = RotatingFile::open(directory.path(), "web", &config(100, 3)).unwrap();
        let (mut followed, mut place, mut written) = (Vec::new(), LogPlace::default(), Vec::new());
        for number in 0..200 {
            let line = format!("line {number:04}\n");
            file.write(line.as_bytes()).unwrap();
            written.extend_from_slice(line.as_bytes());
            // Up to two files behind, which is all that there is.
            if number % 17 == 0 {
                let chunk = since(directory.path(), "web", place, 3).unwrap();
                assert!(!chunk.gap);
                followed.extend(chunk.bytes);
                place = chunk.next;
            }
        }
        followed.extend(since(directory.path(), "web", place, 3).unwrap().bytes);
        assert_eq!(followed, written);
        let late = since(directory.path(), "web", LogPlace { file: 1, offset: 5 }, 3).unwrap();
        assert!(late.gap && written.ends_with(&late.bytes) && !late.bytes.is_empty());
        let (tail, next) = tail_from(directory.path(), "web", 2, 3).unwrap().unwrap();
        assert_eq!(tail, b"line 0198\nline 0199\n");
        assert_eq!(since(directory.path(), "web", next, 3).unwrap().bytes, b"");
        assert_eq!(tail_from(directory.path(), "web", 0, 3).unwrap().unwrap().0, b"");
    }

    #[test]
    fn a_service_that_wrote_nothing_is_not_an_empty_one() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(tail(directory.path(), "web", 5, 3).unwrap(), None);
    }
}
