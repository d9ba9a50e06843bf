//! Unix users of workspaces: a block of ids for each workspace, one id for each of its services, none of them in the machine's /etc/passwd.
//!
//! Where EnvForge runs as root, a service runs as a user of its own, so that neither its siblings nor the workspace's shell
//! read its environment from /proc or its files from its home. The first id of a block is the shell's user and the block's
//! group; what the workspace shares (checkout, data) belongs to that group.
//!
//! Layout: `users/<workspace>.json` in the state directory says which block a workspace has and which service which id, and
//! `<block>` in a registry of the whole machine says whose a block is, since several state directories may share a machine.
//! Which block is tried first follows from the workspace's id. Not here: who may have a shell, what runs as whom (`wake`).
//!
//! INVARIANT: no two workspaces of one machine hold one block at the same time. A claim is written before the first process
//! or file has an id of it, and given back after the last is gone.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use envforge_domain::ids::WorkspaceId;
use envforge_domain::slug::ServiceName;
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid};
use rustix::process::geteuid;
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::failure::OpenError;
use crate::output::private_directory;
use crate::process;
use crate::record::Records;

/// Above everything that distributions, systemd and containers give to somebody (systemd.io/UIDS-GIDS), and below 2^31.
const FIRST_ID: u32 = 1_900_000_000;
/// The shell's, and those of as many services as a workspace may have had without one's id being given to another.
const BLOCK_IDS: u32 = 64;
const BLOCKS: u32 = 1 << 20;
/// How old a claim of a state directory that is gone must be before its ids are somebody else's.
const GONE_FOR: Duration = Duration::from_secs(60 * 60);
const CLAIM_BYTES_MAX: u64 = 8 * 1024;
/// Directories below each other that are looked at; deeper ones keep their owner.
const DEPTH_MAX: usize = 200;

/// One user with the group of its workspace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnixUser {
    pub uid: u32,
    pub gid: u32,
}

impl UnixUser {
    /// Has a process run as this user, in this group and in no other.
    pub fn apply(self, command: &mut tokio::process::Command) {
        // std clears the supplementary groups with it.
        command.uid(self.uid).gid(self.gid);
    }

    /// Gives it a file, pipe or directory that is open here.
    pub(crate) fn own(self, file: &impl AsFd) -> io::Result<()> {
        Ok(rustix::fs::fchown(file, Some(Uid::from_raw(self.uid)), Some(Gid::from_raw(self.gid)))?)
    }
}

/// The ids of one workspace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UserBlock {
    block: u32,
    /// From 1; 0 is the shell's.
    services: BTreeMap<String, u32>,
}

impl UserBlock {
    const fn first(&self) -> u32 {
        FIRST_ID + self.block * BLOCK_IDS
    }

    /// Whose shell, checkout and hooks are. It declares no secrets and reads no service's.
    pub const fn shell(&self) -> UnixUser {
        UnixUser { uid: self.first(), gid: self.first() }
    }

    /// `None` where no service of that name was ever started.
    pub fn service(&self, name: &ServiceName) -> Option<UnixUser> {
        self.service_named(name.as_str())
    }

    pub(crate) fn service_named(&self, name: &str) -> Option<UnixUser> {
        let index = *self.services.get(name)?;
        Some(UnixUser { uid: self.first() + index, gid: self.first() })
    }

    /// Services and jobs that have an id.
    pub(crate) fn named(&self) -> impl Iterator<Item = (&str, UnixUser)> {
        let gid = self.first();
        self.services.iter().map(move |(name, index)| (name.as_str(), UnixUser { uid: gid + index, gid }))
    }

    /// Whether an id is one of this block's.
    pub const fn holds(&self, uid: u32) -> bool {
        uid >= self.first() && uid - self.first() < BLOCK_IDS
    }

    /// Whether an id is some workspace's, on whichever machine.
    pub(crate) const fn is_of_any(uid: u32) -> bool {
        uid >= FIRST_ID && uid - FIRST_ID < BLOCKS * BLOCK_IDS
    }

    fn free(&self) -> Option<u32> {
        (1..BLOCK_IDS).find(|index| !self.services.values().any(|given| given == index))
    }

    /// Gives each service an id: the one it had, or one that none of them has. Whether something changed.
    fn give(&mut self, services: &[ServiceName]) -> bool {
        let before = self.services.clone();
        for name in services {
            if self.services.contains_key(name.as_str()) {
                continue;
            }
            // A block has more ids than a manifest services: one that is not declared any more gives up its own.
            let index = self.free().or_else(|| {
                let gone = |given: &&String| !services.iter().any(|name| name.as_str() == given.as_str());
                let name = self.services.keys().find(gone).cloned()?;
                self.services.remove(&name)
            });
            if let Some(index) = index {
                self.services.insert(name.as_str().to_owned(), index);
            }
        }
        self.services != before
    }
}

/// What a job is called among the services. No service's name holds a dot.
pub(crate) fn name_of_job(job: &str) -> String {
    format!("job.{job}")
}

/// Whose a block is.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Claim {
    workspace: String,
    state_dir: PathBuf,
}

/// Why services run as EnvForge's own user.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoUsers {
    #[error("EnvForge does not run as root, which alone can start processes as other users")]
    NotRoot,
    #[error("other users cannot enter `{directory}` (mode {mode:o}), below which the state directory lies")]
    Unreachable { directory: PathBuf, mode: u32 },
}

/// The users of one state directory's workspaces. Cheap to clone.
#[derive(Clone)]
pub struct UnixUsers {
    state_dir: PathBuf,
    registry: PathBuf,
    records: Records<WorkspaceId, UserBlock>,
}

impl UnixUsers {
    /// Whether this process can give workspaces users of their own below that state directory. What of its path does not exist
    /// yet is not looked at.
    ///
    /// # Errors
    /// [`NoUsers`].
    pub fn supported(state_dir: &Path) -> Result<(), NoUsers> {
        if !geteuid().is_root() {
            return Err(NoUsers::NotRoot);
        }
        // By the way that leads there: not by links to it, and not from where this process happens to be.
        let absolute = std::path::absolute(state_dir).unwrap_or_else(|_| state_dir.to_owned());
        let above = absolute.ancestors().skip(1).find_map(|directory| fs::canonicalize(directory).ok());
        for directory in above.iter().flat_map(|above| above.ancestors()) {
            let Ok(metadata) = fs::metadata(directory) else { continue };
            let mode = metadata.mode() & 0o777;
            if mode & 0o001 == 0 {
                return Err(NoUsers::Unreachable { directory: directory.to_owned(), mode });
            }
        }
        Ok(())
    }

    /// `None` where services run as EnvForge's own user.
    pub(crate) fn open_as_configured(config: &Config) -> Result<Option<Self>, OpenError> {
        match (&config.unix_users, Self::supported(&config.state_dir)) {
            (Some(registry), Ok(())) => Self::open(&config.state_dir, registry).map(Some),
            (None, _) | (Some(_), Err(_)) => Ok(None),
        }
    }

    /// `registry`: a directory of the whole machine. Made if need be.
    pub(crate) fn open(state_dir: &Path, registry: &Path) -> Result<Self, OpenError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| OpenError::State { path, source }
        };
        let users = state_dir.join("users");
        for directory in [&users, registry] {
            private_directory(directory).map_err(failed(directory))?;
        }
        // Others enter, and see nothing: what lies below says for itself who reads it.
        for directory in [state_dir.to_owned(), state_dir.join("workspaces")] {
            fs::set_permissions(&directory, fs::Permissions::from_mode(0o711)).map_err(failed(&directory))?;
        }
        let state_dir = state_dir.to_owned();
        Ok(Self { state_dir, registry: registry.to_owned(), records: Records::in_directory(users) })
    }

    /// The ids of a workspace, claimed now where it has none, with one for each of these services. Blocking.
    ///
    /// # Errors
    /// Where a record cannot be read or written, or the machine has no block left.
    pub fn of(&self, workspace: WorkspaceId, services: &[ServiceName]) -> io::Result<UserBlock> {
        let _lock = self.lock()?;
        if let Some(mut block) = self.records.read(&workspace)? {
            if block.give(services) {
                self.records.write(workspace, &block)?;
            }
            return Ok(block);
        }
        let first = u32::try_from(workspace.as_uuid().as_u128() % u128::from(BLOCKS)).unwrap_or(0);
        for step in 0..BLOCKS {
            let number = (first + step) % BLOCKS;
            if !self.claim(number, workspace)? {
                continue;
            }
            let mut block = UserBlock { block: number, services: BTreeMap::new() };
            block.give(services);
            self.records.write(workspace, &block)?;
            return Ok(block);
        }
        Err(io::Error::other("every block of user ids of this machine is somebody's"))
    }

    /// The user of a job, which keeps its id from run to run. Blocking.
    ///
    /// # Errors
    /// Where the workspace has no ids, or none is left for it: those of services are theirs.
    pub(crate) fn of_job(&self, workspace: WorkspaceId, name: &str) -> io::Result<UnixUser> {
        let _lock = self.lock()?;
        let mut block = self.records.read(&workspace)?.ok_or(io::ErrorKind::NotFound)?;
        if let Some(user) = block.service_named(name) {
            return Ok(user);
        }
        let index = block.free().ok_or_else(|| io::Error::other("this workspace has no user id left for a job"))?;
        block.services.insert(name.to_owned(), index);
        self.records.write(workspace, &block)?;
        block.service_named(name).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// The ids of a workspace that has some. Blocking.
    ///
    /// # Errors
    /// Where its record cannot be read.
    pub fn known(&self, workspace: WorkspaceId) -> io::Result<Option<UserBlock>> {
        self.records.read(&workspace)
    }

    /// Gives a workspace's ids back. INVARIANT: after its last process and file are gone. Blocking.
    pub(crate) fn release(&self, workspace: WorkspaceId) -> io::Result<()> {
        let _lock = self.lock()?;
        let Some(block) = self.records.read(&workspace)? else { return Ok(()) };
        match fs::remove_file(self.registry.join(block.block.to_string())) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        self.records.remove(workspace)
    }

    /// Whether the block is this workspace's now. A claim of a state directory that is no more counts for nothing once nothing runs as
    /// its users and it is old: who ended them, by their ids, may be looking for more of them yet.
    fn claim(&self, block: u32, workspace: WorkspaceId) -> io::Result<bool> {
        let path = self.registry.join(block.to_string());
        let mine = Claim { workspace: workspace.to_string(), state_dir: self.state_dir.clone() };
        match File::open(&path) {
            Ok(file) => {
                let made = file.metadata()?.modified()?;
                let mut text = Vec::new();
                file.take(CLAIM_BYTES_MAX).read_to_end(&mut text)?;
                let held = serde_json::from_slice::<Claim>(&text).map_err(|error| {
                    let text = format!("the claim {} cannot be read: {error}", path.display());
                    io::Error::new(io::ErrorKind::InvalidData, text)
                })?;
                let own = held.workspace == mine.workspace && held.state_dir == mine.state_dir;
                if own || fs::exists(&held.state_dir)? && held.state_dir != mine.state_dir {
                    return Ok(own);
                }
                // Of this very state directory, or of one that is gone: left over where no record names the block.
                if held.state_dir == mine.state_dir {
                    let of = held.workspace.parse::<WorkspaceId>().ok();
                    let recorded = of.map(|of| self.records.read(&of)).transpose()?.flatten();
                    if recorded.is_some_and(|recorded| recorded.block == block) {
                        return Ok(false);
                    }
                } else if made.elapsed().is_ok_and(|age| age < GONE_FOR)
                    || process::runs_as(&UserBlock { block, services: BTreeMap::new() })?
                {
                    return Ok(false);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let replacement = self.registry.join(format!("{block}.new"));
        let mut file = OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&replacement)?;
        file.write_all(&serde_json::to_vec(&mine)?)?;
        file.sync_all()?;
        fs::rename(&replacement, &path)?;
        File::open(&self.registry)?.sync_all()?;
        Ok(true)
    }

    /// Held over every look and change: other state directories' processes do the same.
    fn lock(&self) -> io::Result<File> {
        let path = self.registry.join("lock");
        let file = OpenOptions::new().create(true).write(true).truncate(false).mode(0o600).open(path)?;
        file.lock()?;
        Ok(file)
    }
}

/// A directory of a workspace, made if need be, that belongs to a user and its group with exactly this mode. Its parent must
/// be EnvForge's own: nobody else may be able to put something in its place.
pub(crate) fn directory_of(path: &Path, user: UnixUser, mode: u32) -> io::Result<()> {
    private_directory(path)?;
    let directory = rustix::fs::open(path, OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    user.own(&directory)?;
    rustix::fs::fchmod(&directory, Mode::from_raw_mode(mode))?;
    Ok(())
}

/// Makes what a workspace's users need below its place: a home for each service, and what they share. The place itself stays
/// EnvForge's own, and so does the output. Homes of services and jobs that have no id any more are gone afterwards: whoever has
/// the id now could read them.
pub(crate) fn make_place(block: &UserBlock, place: &Path, output: &Path) -> io::Result<()> {
    let shell = block.shell();
    let entered = UnixUser { uid: 0, gid: shell.gid };
    directory_of(place, entered, 0o710)?;
    private_directory(output)?;
    directory_of(&place.join("home"), shell, 0o700)?;
    directory_of(&place.join("index"), shell, 0o700)?;
    directory_of(&place.join("data"), shell, 0o2770)?;
    // What was made while services ran as EnvForge itself, or by a command as root.
    hand_over(&place.join("data"), block, Handing::Checkout)?;
    let homes = place.join("homes");
    directory_of(&homes, entered, 0o710)?;
    for left in fs::read_dir(&homes)? {
        let left = left?;
        let is_named = |name: &str| block.services.contains_key(name);
        if !left.file_name().to_str().is_some_and(is_named) {
            fs::remove_dir_all(left.path())?;
        }
    }
    for name in block.services.keys() {
        if let Some(user) = block.service_named(name) {
            directory_of(&homes.join(name), user, 0o700)?;
        }
    }
    Ok(())
}

/// What to do with a tree of files.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Handing {
    /// Everything that no id of the block owns becomes the shell's; every directory may be written by the group.
    Checkout,
    /// Everything becomes readable by the group and stays root's.
    Readable,
}

/// Hands a tree over to a workspace. Each entry is opened below its parent and changed by that handle: processes of the
/// workspace may move things about meanwhile, and must not get this to change anything outside. Blocking.
pub(crate) fn hand_over(tree: &Path, block: &UserBlock, handing: Handing) -> io::Result<()> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::RDONLY;
    let top = match rustix::fs::open(tree, flags, Mode::empty()) {
        Err(rustix::io::Errno::NOENT) => return Ok(()),
        top => top?,
    };
    hand_over_directory(top.as_fd(), block, handing, DEPTH_MAX)
}

fn hand_over_directory(directory: BorrowedFd<'_>, block: &UserBlock, handing: Handing, depth: usize) -> io::Result<()> {
    hand_over_one(directory, block, handing)?;
    if depth == 0 {
        return Ok(());
    }
    for entry in rustix::fs::Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let found = match rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(rustix::io::Errno::NOENT) => continue,
            found => found?,
        };
        let kind = FileType::from_raw_mode(found.st_mode);
        let ours = block.holds(found.st_uid);
        match kind {
            FileType::Directory => {
                let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::RDONLY;
                match rustix::fs::openat(directory, name, flags, Mode::empty()) {
                    Ok(below) => hand_over_directory(below.as_fd(), block, handing, depth - 1)?,
                    // Moved away meanwhile.
                    Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR | rustix::io::Errno::LOOP) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            FileType::RegularFile if handing == Handing::Readable || !ours => {
                let flags = OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::RDONLY | OFlags::NONBLOCK;
                match rustix::fs::openat(directory, name, flags, Mode::empty()) {
                    Ok(file) => hand_over_one(file.as_fd(), block, handing)?,
                    Err(rustix::io::Errno::NOENT | rustix::io::Errno::NXIO | rustix::io::Errno::LOOP) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            FileType::Symlink if handing == Handing::Checkout && !ours => {
                let shell = block.shell();
                let (uid, gid) = (Some(Uid::from_raw(shell.uid)), Some(Gid::from_raw(shell.gid)));
                match rustix::fs::chownat(directory, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW) {
                    Err(rustix::io::Errno::NOENT) => {}
                    done => done?,
                }
            }
            // A service's own files are left as it made them; sockets, pipes and devices are nobody's to hand over.
            _ => {}
        }
    }
    Ok(())
}

fn hand_over_one(file: BorrowedFd<'_>, block: &UserBlock, handing: Handing) -> io::Result<()> {
    let found = rustix::fs::fstat(file)?;
    let directory = FileType::from_raw_mode(found.st_mode) == FileType::Directory;
    // A second name of a file may lie outside, where the machine lets strangers link to what is not theirs.
    if !directory && (FileType::from_raw_mode(found.st_mode) != FileType::RegularFile || found.st_nlink != 1) {
        return Ok(());
    }
    let (shell, mode) = (block.shell(), found.st_mode & 0o777);
    let (uid, wanted) = match handing {
        Handing::Readable => (0, if directory { mode | 0o050 } else { mode | 0o040 }),
        Handing::Checkout if block.holds(found.st_uid) => (found.st_uid, if directory { mode | 0o2770 } else { mode }),
        Handing::Checkout => (shell.uid, if directory { mode | 0o2770 } else { mode | 0o060 }),
    };
    if found.st_uid != uid || found.st_gid != shell.gid {
        rustix::fs::fchown(file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(shell.gid)))?;
    }
    if found.st_mode & 0o7777 != wanted {
        rustix::fs::fchmod(file, Mode::from_raw_mode(wanted))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use uuid::Uuid;

    use super::*;

    fn workspace(number: u128) -> WorkspaceId {
        WorkspaceId::from_uuid(Uuid::from_u128(number))
    }

    fn users(state: &Path, registry: &Path) -> UnixUsers {
        private_directory(&state.join("workspaces")).unwrap();
        UnixUsers::open(state, registry).unwrap()
    }

    fn services(names: &[&str]) -> Vec<ServiceName> {
        names.iter().map(|name| name.parse().unwrap()).collect()
    }

    #[test]
    fn a_workspace_keeps_its_ids_and_no_other_gets_one_of_them() {
        let (one, two, registry) =
            (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (first, second) = (users(one.path(), registry.path()), users(two.path(), registry.path()));
        let names = services(&["web", "worker"]);
        // All of them would have the same block.
        let numbers = [7, 7 + u128::from(BLOCKS), 7 + 2 * u128::from(BLOCKS)];
        let blocks = [
            first.of(workspace(numbers[0]), &names).unwrap(),
            first.of(workspace(numbers[1]), &names).unwrap(),
            second.of(workspace(numbers[2]), &names).unwrap(),
        ];
        for (index, block) in blocks.iter().enumerate() {
            let ids = [block.shell().uid, block.service(&names[0]).unwrap().uid, block.service(&names[1]).unwrap().uid];
            assert!(ids[0] < ids[1] && ids[1] < ids[2]);
            for (other, other_block) in blocks.iter().enumerate() {
                assert!(index == other || ids.iter().all(|id| !other_block.holds(*id)), "{blocks:?}");
            }
        }
        let again = users(one.path(), registry.path());
        assert_eq!(again.of(workspace(numbers[1]), &names).unwrap(), blocks[1]);
        assert_eq!(again.known(workspace(numbers[1])).unwrap().as_ref(), Some(&blocks[1]));
    }

    #[test]
    fn ids_that_were_given_back_or_whose_state_directory_is_gone_are_given_again() {
        let (one, registry) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let gone = tempfile::tempdir().unwrap();
        let first = users(one.path(), registry.path());
        let block = first.of(workspace(9), &[]).unwrap();
        first.release(workspace(9)).unwrap();
        first.release(workspace(9)).unwrap();
        let other = users(gone.path(), registry.path());
        assert_eq!(other.of(workspace(9 + u128::from(BLOCKS)), &[]).unwrap(), block);
        assert_ne!(first.of(workspace(9), &[]).unwrap(), block, "somebody else's");
        first.release(workspace(9)).unwrap();
        drop(gone);
        let number = workspace(9).as_uuid().as_u128() as u32;
        assert!(!first.claim(number, workspace(9)).unwrap(), "somebody may be at its users yet");
        let claim = OpenOptions::new().write(true).open(registry.path().join(number.to_string())).unwrap();
        claim.set_modified(std::time::UNIX_EPOCH).unwrap();
        assert_eq!(first.of(workspace(9), &[]).unwrap(), block);
    }

    #[test]
    fn a_service_keeps_its_id_whatever_comes_and_goes_beside_it() {
        let (one, registry) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let users = users(one.path(), registry.path());
        let id = |names: &[&str], name: &str| {
            users.of(workspace(3), &services(names)).unwrap().service(&name.parse().unwrap()).unwrap().uid
        };
        let web = id(&["web", "worker"], "web");
        assert_eq!(id(&["api", "web"], "web"), web);
        for round in 0..100 {
            let name = format!("svc-{round}");
            assert_ne!(id(&["web", &name], &name), web);
            assert_eq!(id(&["web", &name], "web"), web);
        }
    }

    /// Where the tests are not root, nobody can be given a home.
    #[test]
    fn whoever_gets_an_id_that_another_service_had_finds_nothing_of_that_ones_home() {
        let (one, registry) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        if UnixUsers::supported(one.path()) == Err(NoUsers::NotRoot) {
            return eprintln!("not root: nothing was tested");
        }
        let users = users(one.path(), registry.path());
        let (place, output) = (one.path().join("place"), one.path().join("output"));
        let made = |names: &[String]| {
            let names: Vec<ServiceName> = names.iter().map(|name| name.parse().unwrap()).collect();
            let block = users.of(workspace(4), &names).unwrap();
            make_place(&block, &place, &output).unwrap();
            block
        };
        let all: Vec<String> = (1..BLOCK_IDS).map(|number| format!("svc-{number}")).collect();
        let before = made(&all);
        for name in ["svc-1", "svc-2"] {
            fs::write(place.join("homes").join(name).join("kept"), name).unwrap();
        }
        let (given_on, others) = ("svc-1".to_owned(), &all[1..]);
        let after = made(&[others, &["svc-new".to_owned()]].concat());
        let id = |block: &UserBlock, name: &str| block.service_named(name).map(|user| user.uid);
        assert_eq!(id(&after, "svc-new"), id(&before, &given_on));
        assert!(!place.join("homes/svc-1").exists(), "its id is somebody else's");
        assert_eq!(fs::read_dir(place.join("homes/svc-new")).unwrap().count(), 0);
        assert_eq!(fs::read_to_string(place.join("homes/svc-2/kept")).unwrap(), "svc-2");
    }

    #[test]
    fn a_claim_that_cannot_be_read_is_nobodys_to_take() {
        let (one, registry) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let users = users(one.path(), registry.path());
        fs::write(registry.path().join("5"), "nonsense").unwrap();
        assert_eq!(users.of(workspace(5), &[]).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
