//! Which processes belong together, how they are found again, how they end.
//!
//! Every process of a family carries a random marker in its environment, which children inherit. It finds what a process
//! group does not: daemons that called `setsid`, and what is left after a kill -9 of this program.
//!
//! INVARIANT: a process that could not be looked at counts as one that still runs. Only what is known to be gone, or
//! somebody else's, is left out.
//!
//! INVARIANT: whoever is found is signalled, whatever could not be told of others: what others do on the machine never keeps a
//! family from its end.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::{self, Read};
use std::path::Path;
use std::time::Duration;

use rustix::process::{Signal, getpid};
use tokio::time::Instant;

use super::{Identity, KILL_PATIENCE, Marker, PROC, Place, Stat, signal, unless_gone};
use crate::environment::{MARKER_VARIABLE, SERVICE_VARIABLE};
use crate::unix_user::UserBlock;

/// So often, and after such a pause that doubles, a process is read again while it is becoming another program.
const READS_AGAIN: u32 = 5;
const READ_PAUSE: Duration = Duration::from_micros(250);
/// So often the machine is looked at before what is found is said to survive: on one that is busy enough a look takes seconds.
const LOOKS_MIN: u32 = 5;
/// Environment of one process that is looked at. Linux allows a quarter of the stack limit, 2 MiB by default.
const ENVIRONMENT_BYTES_MAX: u64 = 8 * 1024 * 1024;

/// What belongs to one runtime.
#[derive(Clone)]
pub(crate) struct Family {
    pub(crate) marker: Marker,
    /// Leaders of the process groups; for members that cleared their environment.
    pub(crate) groups: Vec<Identity>,
    /// Only the processes of this service.
    pub(crate) service: Option<String>,
    /// Nothing that left the groups, though it was started by what is in them.
    pub(crate) groups_alone: bool,
    /// And whatever has this process for its parent: it takes in what its children let go of. Itself it is none of them.
    pub(crate) children_of: Option<i32>,
    /// The users of its workspace, where it has its own: what runs as another workspace's is none of it.
    pub(crate) block: Option<UserBlock>,
    /// And whatever runs as one of its services' users: nothing hides from that.
    pub(crate) by_user: bool,
}

/// Processes that do not end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Survivors {
    pub(crate) count: usize,
}

/// What looks at the machine's processes have told of a family, from one to the next.
#[derive(Default)]
struct Seen {
    /// Processes that are ours. They stay it, whatever programs they become.
    ours: HashSet<Identity>,
    /// Those whose environments were somebody else's when they could be read. They are not read again, which may take as long as
    /// they take to become another program: none of them becomes ours, for only what is ours has the marker to pass on.
    others: HashSet<Identity>,
    /// At the last look: by id, those that may be ours, and why that could not be told.
    doubts: HashMap<i32, Doubt>,
}

/// Why it cannot be told whose a process is.
#[derive(Debug, thiserror::Error)]
enum Doubt {
    /// Starting a program takes the kernel a moment; longer where what it starts from does not answer.
    #[error("it is becoming another program")]
    Becoming,
    /// Another program, or other words of the same one, each time it was read.
    #[error("its environment was another one at each look")]
    Changing,
    #[error(transparent)]
    Unreadable(#[from] io::Error),
}

impl Family {
    /// What carries the marker, stands in one of these groups or is a child of such. `block`: the users of its workspace.
    pub(crate) fn marked(marker: Marker, groups: Vec<Identity>, block: Option<UserBlock>) -> Self {
        Self { marker, groups, service: None, groups_alone: false, children_of: None, block, by_user: false }
    }

    /// All of a runtime.
    pub(crate) fn of_runtime(marker: Marker, groups: Vec<Identity>, users: Option<UserBlock>) -> Self {
        Self { by_user: true, ..Self::marked(marker, groups, users) }
    }

    /// One service of it.
    pub(crate) fn of_service(marker: Marker, service: &str, users: Option<UserBlock>) -> Self {
        Self { service: Some(service.to_owned()), ..Self::of_runtime(marker, Vec::new(), users) }
    }

    /// Looks for every living process of the family, and passes each on as soon as it is found. Blocking: reads /proc.
    ///
    /// # Errors
    /// Where the processes cannot be listed; `seen` is as it was.
    fn look(&self, proc: &Path, seen: &mut Seen, mut found: impl FnMut(Identity)) -> io::Result<()> {
        let own = getpid().as_raw_nonzero().get();
        let (mut processes, mut doubts) = (HashMap::<i32, Stat>::new(), HashMap::<i32, Doubt>::new());
        for entry in fs::read_dir(proc)? {
            if let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok())
                && pid != own
                && self.children_of != Some(pid)
            {
                match Stat::read(proc, pid) {
                    Ok(Some(stat)) if !stat.is_dead() || self.groups.contains(&stat.identity) => {
                        processes.insert(pid, stat);
                    }
                    Ok(_) => {}
                    Err(error) => {
                        doubts.insert(pid, error.into());
                    }
                }
            }
        }
        let here = Stat::read(proc, own)?.map(|stat| stat.layout);
        // Whoever cannot be looked at is who it was.
        let stays = |known: &Identity| {
            let still = processes.get(&known.pid).is_some_and(|stat| stat.identity == *known);
            still || doubts.contains_key(&known.pid)
        };
        seen.ours.retain(stays);
        seen.others.retain(stays);
        // A group is ours while its leader is the process that we started; a reused id has another start time. Who waits
        // for leaders holds them as zombies until their groups are empty (`Leader`).
        let groups: HashSet<i32> = self
            .groups
            .iter()
            .filter(|leader| processes.get(&leader.pid).is_some_and(|stat| stat.identity == **leader))
            .map(|leader| leader.pid)
            .collect();
        processes.retain(|_, stat| !stat.is_dead());
        let told = |stat: &Stat, seen: &Seen| {
            self.children_of == Some(stat.parent) || groups.contains(&stat.group) || seen.ours.contains(&stat.identity)
        };
        // First those for whom nothing has to be read that may take its time.
        let mut ours: HashSet<i32> =
            processes.values().filter(|stat| told(stat, seen)).map(|stat| stat.identity.pid).collect();
        self.take_in_children(&processes, &mut ours);
        processes.values().filter(|stat| ours.contains(&stat.identity.pid)).for_each(|stat| found(stat.identity));
        // Each by a look of its own: since that at all of them it may have become others many times over.
        let untold =
            |(pid, stat): (&i32, &Stat)| (!ours.contains(pid) && !seen.others.contains(&stat.identity)).then_some(*pid);
        let mut untold: Vec<i32> = processes.iter().filter_map(untold).chain(doubts.into_keys()).collect();
        let mut doubts = HashMap::<i32, Doubt>::new();
        for attempt in 0..=READS_AGAIN {
            for pid in std::mem::take(&mut untold) {
                let stat = match Stat::read(proc, pid) {
                    Ok(Some(stat)) if !stat.is_dead() && !seen.others.contains(&stat.identity) => stat,
                    Ok(_) => continue,
                    Err(error) => {
                        doubts.insert(pid, error.into());
                        continue;
                    }
                };
                let owned = if told(&stat, seen) { Ok(true) } else { self.owns(proc, &stat, (own, here)) };
                match owned {
                    Ok(true) => {
                        ours.insert(pid);
                        found(stat.identity);
                        processes.insert(pid, stat);
                    }
                    Ok(false) => drop(seen.others.insert(stat.identity)),
                    Err(doubt) => drop(doubts.insert(pid, doubt)),
                }
            }
            doubts.retain(|pid, _| self.may_be_ours(proc, *pid));
            if doubts.is_empty() || attempt == READS_AGAIN {
                break;
            }
            std::thread::sleep(READ_PAUSE * 2_u32.pow(attempt));
            untold = std::mem::take(&mut doubts).into_keys().collect();
        }
        let before = ours.clone();
        self.take_in_children(&processes, &mut ours);
        ours.difference(&before).filter_map(|pid| processes.get(pid)).for_each(|stat| found(stat.identity));
        doubts.retain(|pid, _| !ours.contains(pid));
        // Those that were ours and could not be looked at now are no doubts: they are ours.
        let unread: Vec<Identity> =
            seen.ours.iter().copied().filter(|known| doubts.remove(&known.pid).is_some()).collect();
        let read = ours.iter().filter_map(|pid| processes.get(pid)).map(|stat| stat.identity);
        seen.ours = unread.into_iter().chain(read).collect();
        seen.others.retain(|known| !ours.contains(&known.pid));
        seen.doubts = doubts;
        Ok(())
    }

    /// Children of ours are ours, whatever they did to their environment.
    fn take_in_children(&self, processes: &HashMap<i32, Stat>, ours: &mut HashSet<i32>) {
        let more = |ours: &HashSet<i32>| -> Vec<i32> {
            let is_more = |stat: &&Stat| ours.contains(&stat.parent) && !ours.contains(&stat.identity.pid);
            processes.values().filter(is_more).map(|stat| stat.identity.pid).collect()
        };
        let mut children = if self.groups_alone { Vec::new() } else { more(ours) };
        while !children.is_empty() {
            ours.extend(children);
            children = more(ours);
        }
    }

    /// Whether a process is ours that neither group nor parent tells. `own`, `here`: this very process, and where its memory is.
    fn owns(&self, proc: &Path, stat: &Stat, (own, here): (i32, Option<(u64, u64)>)) -> Result<bool, Doubt> {
        if self.is_user_of(proc, stat.identity.pid)? {
            return Ok(true);
        }
        // Whom we are starting runs in our own memory until it is what it becomes (vfork), also for a moment after the start
        // has returned. We never fork otherwise.
        if stat.parent == own && Some(stat.layout) == here {
            return Err(Doubt::Becoming);
        }
        self.marks(proc, stat)
    }

    fn is_user_of(&self, proc: &Path, pid: i32) -> io::Result<bool> {
        let Some(users) = self.block.as_ref().filter(|_| self.by_user) else { return Ok(false) };
        let Some(uid) = real_user(proc, pid)? else { return Ok(false) };
        Ok(match &self.service {
            Some(service) => users.service_named(service).is_some_and(|user| user.uid == uid),
            // The shell's user stays: a shell outlives its workspace's runtime.
            None => users.holds(uid) && uid != users.shell().uid,
        })
    }

    /// Whether a process may be ours of which nothing else can be told: as another workspace's user runs none that is.
    fn may_be_ours(&self, proc: &Path, pid: i32) -> bool {
        let Some(users) = &self.block else { return true };
        match real_user(proc, pid) {
            Ok(uid) => uid.is_some_and(|uid| users.holds(uid) || !UserBlock::is_of_any(uid)),
            Err(_) => true,
        }
    }

    /// Whether a process says itself that it is ours.
    fn marks(&self, proc: &Path, stat: &Stat) -> Result<bool, Doubt> {
        let pid = stat.identity.pid;
        // To ask for it would wait for execve, which on a busy machine takes as long as the process waits for its turn.
        if stat.environment == Place::NotYet {
            return Err(Doubt::Becoming);
        }
        let Some(environment) = environment_of(proc, pid)? else { return Ok(false) };
        // As much as there was: all of it. Else it was another program's by then, or execve came between two reads.
        if environment.len() as u64 != stat.environment_bytes {
            match Stat::read(proc, pid)? {
                None => return Ok(false),
                Some(now) if now.environment == Place::NotYet => return Err(Doubt::Becoming),
                Some(now) if now.layout != stat.layout => return Err(Doubt::Changing),
                Some(_) => {}
            }
        }
        let carries = |name: &str, value: &str| {
            environment.split(|byte| *byte == 0).any(|variable| {
                variable.strip_prefix(name.as_bytes()).and_then(|rest| rest.strip_prefix(b"="))
                    == Some(value.as_bytes())
            })
        };
        Ok(carries(MARKER_VARIABLE, self.marker.as_str())
            && self.service.as_deref().is_none_or(|service| carries(SERVICE_VARIABLE, service)))
    }

    /// Asks every member to end, and ends by force those that still live after `grace`. Returns how many there were.
    /// Where they cannot be looked for until the end, there may be survivors.
    pub(crate) async fn end(&self, grace: Duration) -> Result<usize, Survivors> {
        self.end_in(Path::new(PROC), grace, KILL_PATIENCE).await
    }

    async fn end_in(&self, proc: &Path, grace: Duration, patience: Duration) -> Result<usize, Survivors> {
        let asked_until = Instant::now() + grace;
        let mut seen = Seen::default();
        let mut asked: HashSet<Identity> = HashSet::new();
        let (mut pause, mut looks) = (Duration::from_millis(2), 0);
        loop {
            let by_force = Instant::now() >= asked_until;
            let (family, proc) = (self.clone(), proc.to_owned());
            let looking = move || {
                let looked = family.look(&proc, &mut seen, |member| {
                    let first = asked.insert(member);
                    if by_force {
                        signal(member, Signal::KILL);
                    } else if first {
                        signal(member, Signal::TERM);
                    }
                });
                (seen, asked, looked)
            };
            let looked;
            (seen, asked, looked) =
                tokio::task::spawn_blocking(looking).await.expect("reading /proc does not panic and is not cancelled");
            let now = Instant::now();
            looks += u32::from(by_force);
            let late = now > asked_until + patience && looks >= LOOKS_MIN;
            if late {
                // At so many reads no program stays unknown that becomes others: this one hides, as by an empty environment.
                seen.doubts.retain(|_, doubt| !matches!(doubt, Doubt::Changing));
            }
            if looked.is_ok() && seen.ours.is_empty() && seen.doubts.is_empty() {
                return Ok(asked.len());
            }
            if late {
                if let Err(error) = looked {
                    tracing::error!(%error, "processes could not be looked for: what was asked to end may still run");
                }
                for (pid, doubt) in &seen.doubts {
                    tracing::error!(pid, %doubt, "whose a process is cannot be told: it may be one that was to end");
                }
                return Err(Survivors { count: (seen.ours.len() + seen.doubts.len()).max(1) });
            }
            let next = (Instant::now() + pause).min(asked_until.max(now + Duration::from_millis(2)));
            tokio::time::sleep_until(next).await;
            pause = (pause * 2).min(Duration::from_millis(100));
        }
    }
}

/// `None` where the process is gone, or is not ours to read: another user's, or more privileged than we are. What we start is
/// neither, unless a program makes itself so, and then its group and its parent still tell.
fn environment_of(proc: &Path, pid: i32) -> io::Result<Option<Vec<u8>>> {
    let mut environment = Vec::new();
    let read = fs::File::open(proc.join(format!("{pid}/environ")))
        .and_then(|file| file.take(ENVIRONMENT_BYTES_MAX).read_to_end(&mut environment));
    match read {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(None),
        read => Ok(unless_gone(read)?.map(|_| environment)),
    }
}

/// `None` where the process is gone.
fn real_user(proc: &Path, pid: i32) -> io::Result<Option<u32>> {
    let Some(status) = unless_gone(fs::read_to_string(proc.join(format!("{pid}/status"))))? else { return Ok(None) };
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    let uid = line.and_then(|line| line.split_ascii_whitespace().next()?.parse().ok());
    uid.map(Some).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("/proc/{pid}/status")))
}

/// Ends every process of a workspace's users, its shell's too. The number of those that survive SIGKILL otherwise.
pub(crate) async fn end_users(block: &UserBlock) -> Result<(), Survivors> {
    let late = Instant::now() + KILL_PATIENCE;
    loop {
        let found = {
            let block = block.clone();
            tokio::task::spawn_blocking(move || run_by(Path::new(PROC), &block))
                .await
                .expect("reading /proc does not panic and is not cancelled")
        };
        let (living, unknown) = found.unwrap_or_else(|error| {
            tracing::warn!(%error, "processes could not be looked for; trying again");
            (Vec::new(), 1)
        });
        if living.is_empty() && unknown == 0 {
            return Ok(());
        }
        living.iter().for_each(|member| signal(*member, Signal::KILL));
        if Instant::now() > late {
            return Err(Survivors { count: living.len() + unknown });
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Whether anything runs as one of a block's users, or that cannot be told. Blocking.
pub(crate) fn runs_as(block: &UserBlock) -> io::Result<bool> {
    let (found, unknown) = run_by(Path::new(PROC), block)?;
    Ok(!found.is_empty() || unknown > 0)
}

/// What runs as a workspace's users, and how many processes could not be looked at.
fn run_by(proc: &Path, block: &UserBlock) -> io::Result<(Vec<Identity>, usize)> {
    let (mut found, mut unknown) = (Vec::new(), 0);
    for entry in fs::read_dir(proc)? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        let identity = real_user(proc, pid).and_then(|uid| match uid {
            Some(uid) if block.holds(uid) => Ok(Stat::read(proc, pid)?.filter(|stat| !stat.is_dead())),
            _ => Ok(None),
        });
        match identity {
            Ok(stat) => found.extend(stat.map(|stat| stat.identity)),
            Err(_) => unknown += 1,
        }
    }
    Ok((found, unknown))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use tokio::process::{Child, Command};

    use super::super::tests::{sleeping, with_environment};
    use super::*;

    /// What /proc shows of one process, in a directory of its own.
    fn shown(proc: &Path, pid: i32, stat: Option<&str>) -> std::path::PathBuf {
        let process = proc.join(pid.to_string());
        fs::create_dir(&process).unwrap();
        if let Some(stat) = stat {
            fs::write(process.join("stat"), stat).unwrap();
        }
        process
    }

    /// Who is found at one look, and of how many it cannot be told.
    fn looked(family: &Family, proc: &Path) -> io::Result<(Vec<Identity>, usize)> {
        let mut seen = Seen::default();
        family.look(proc, &mut seen, |_| {})?;
        Ok((seen.ours.into_iter().collect(), seen.doubts.len()))
    }

    /// `sh` that becomes `sh`, and so on, as fast as it can, each with another environment than the one before; SIGTERM does
    /// not end it.
    fn restless(marker: &Marker) -> Child {
        const NEXT: &str = "if test \"$LONG\"; then LONG=; else LONG=another; fi; exec /bin/sh -c \"$0\" \"$0\"";
        Command::new("setsid")
            .args(["/bin/sh", "-c", "trap '' TERM; export LONG; exec /bin/sh -c \"$0\" \"$0\"", NEXT])
            .env(MARKER_VARIABLE, marker.as_str())
            .env("LONG", "")
            .kill_on_drop(true)
            .spawn()
            .unwrap()
    }

    /// Waits for processes of ours, which are dead.
    async fn are_dead(children: &mut [Child]) {
        for child in children {
            tokio::time::timeout(Duration::from_secs(10), child.wait()).await.unwrap().unwrap();
        }
    }

    #[test]
    fn a_process_that_becomes_another_program_cannot_be_told_yet() {
        let family = Family::marked(Marker::random(), Vec::new(), None);
        let directory = tempfile::tempdir().unwrap();
        let proc = directory.path();
        for (memory, code, ends, doubts) in [
            ("4096", "0", ("0", "0"), 1),
            ("4096", "0", ("8000", "8000"), 1),
            ("0", "0", ("0", "0"), 0),
            ("4096", "1000", ("8000", "8000"), 0),
            ("4096", "1000", ("8000", "8020"), 0),
        ] {
            let process = shown(proc, 4_000_001, Some(&with_environment(4_000_001, memory, code, ends)));
            fs::write(process.join("environ"), "").unwrap();
            assert_eq!(looked(&family, proc).unwrap(), (Vec::new(), doubts), "{memory} {code} {ends:?}");
            fs::remove_dir_all(process).unwrap();
        }
        // Another user's shows as little, and a place for its code whatever happens to it.
        shown(proc, 4_000_001, Some(&with_environment(4_000_001, "4096", "1", ("0", "0"))));
        assert_eq!(looked(&family, proc).unwrap(), (Vec::new(), 0));
    }

    #[tokio::test]
    async fn whoever_is_found_is_killed_though_it_cannot_be_told_whose_another_is() {
        let directory = tempfile::tempdir().unwrap();
        let proc = directory.path();
        // Ourselves, of whom whoever is just being started is not told apart.
        let own = std::process::id().to_string();
        std::os::unix::fs::symlink(Path::new(PROC).join(&own), proc.join(own)).unwrap();
        let stuck = shown(proc, 4_000_001, Some(&with_environment(4_000_001, "4096", "0", ("0", "0"))));
        fs::write(stuck.join("environ"), "").unwrap();
        let block =
            |number: u32| serde_json::from_str::<UserBlock>(&format!("{{\"block\":{number},\"services\":{{}}}}"));
        let (own, other) = (block(7).unwrap(), block(8).unwrap());
        let of_root = Err(Survivors { count: 1 });
        for (users, uid, ended) in [
            (None, 0, of_root),
            (Some(own.clone()), 0, of_root),
            (Some(own.clone()), own.shell().uid + 3, of_root),
            (Some(own), other.shell().uid, Ok(1)),
        ] {
            fs::write(stuck.join("status"), format!("Name:\tapp\nUid:\t{uid}\t{uid}\t{uid}\t{uid}\n")).unwrap();
            let family = Family::marked(Marker::random(), Vec::new(), users);
            let mut member = [Command::new("sleep")
                .arg("1000")
                .env(MARKER_VARIABLE, family.marker.as_str())
                .kill_on_drop(true)
                .spawn()
                .unwrap()];
            let pid = member[0].id().unwrap().to_string();
            std::os::unix::fs::symlink(Path::new(PROC).join(&pid), proc.join(&pid)).unwrap();
            // Its first look may come before it is what it was started for.
            let result = family.end_in(proc, Duration::from_millis(100), Duration::from_millis(300)).await;
            assert_eq!(result, ended, "{uid}");
            are_dead(&mut member).await;
            fs::remove_file(proc.join(pid)).unwrap();
        }
    }

    /// A few of them, and no look at the machine finds all of them to be the programs that they were a moment before.
    #[tokio::test(flavor = "multi_thread")]
    async fn what_others_become_all_the_time_keeps_nobody_from_their_end() {
        let _others: Vec<Child> = (0..20).map(|_| restless(&Marker::random())).collect();
        let family = Family::marked(Marker::random(), Vec::new(), None);
        let plain = |_| {
            let mut command = Command::new("setsid");
            command.args(["/bin/sh", "-c", "trap '' TERM; sleep 1000 & wait"]);
            command.env(MARKER_VARIABLE, family.marker.as_str()).kill_on_drop(true).spawn().unwrap()
        };
        let mut members: Vec<Child> = (0..2).map(plain).collect();
        let ended = family.end(Duration::from_millis(100)).await;
        assert!(matches!(ended, Ok(2..)), "{ended:?}");
        are_dead(&mut members).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn whoever_becomes_another_program_all_the_time_is_ended() {
        for _ in 0..5 {
            let family = Family::marked(Marker::random(), Vec::new(), None);
            let mut members: Vec<Child> = (0..4).map(|_| restless(&family.marker)).collect();
            assert_eq!(family.end(Duration::from_millis(50)).await, Ok(4));
            are_dead(&mut members).await;
        }
    }

    /// As a program may: prctl moves what the kernel takes for its environment.
    #[tokio::test(flavor = "multi_thread")]
    async fn who_shows_another_environment_at_each_look_hides_itself_and_nobody_else() {
        const MOVES: &str = "\
import ctypes, struct
libc = ctypes.CDLL(None)
libc.sbrk.restype = ctypes.c_void_p
stat = open('/proc/self/stat').read().rsplit(')', 1)[1].split()
code, code_end, stack, data, data_end, brk, args, args_end, first, last = (
    int(stat[field - 3]) for field in (26, 27, 28, 45, 46, 47, 48, 49, 50, 51))
def move(by):
    shown = struct.pack('<11QQII', code, code_end, data, data_end, brk, libc.sbrk(0), stack, args, args_end,
        first + by, first + 2 * by + 1, 0, 0, 0xffffffff)
    return libc.prctl(35, 14, shown, len(shown), 0)
print('refused' if move(0) else 'moves', flush=True)
while True:
    for by in range((last - first) // 3):
        move(by)
";
        let mut hiding = Command::new("python3")
            .args(["-c", MOVES])
            .env("LONG", "x".repeat(4096))
            .stdout(std::process::Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut said = String::new();
        let stdout = hiding.stdout.as_mut().unwrap();
        tokio::io::AsyncBufReadExt::read_line(&mut tokio::io::BufReader::new(stdout), &mut said).await.unwrap();
        if said != "moves\n" {
            eprintln!("this kernel lets no process move its environment: {said}");
            return;
        }
        let family = Family::marked(Marker::random(), Vec::new(), None);
        let mut members = [restless(&family.marker)];
        let ended = family.end_in(Path::new(PROC), Duration::from_millis(50), Duration::from_millis(500)).await;
        assert_eq!(ended, Ok(1));
        are_dead(&mut members).await;
        assert_eq!(hiding.try_wait().unwrap(), None, "it is nobody's of ours");
    }

    #[tokio::test]
    async fn a_process_whose_first_thread_alone_has_ended_is_ended() {
        const LEAVES: &str = "\
import ctypes, os, threading, time
threading.Thread(target=time.sleep, args=(1000,)).start()
ctypes.CDLL(None).syscall(60 if os.uname().machine == 'x86_64' else 93, 0)
";
        let mut command = Command::new("python3");
        command.args(["-c", LEAVES]).process_group(0).kill_on_drop(true);
        let mut members = [command.spawn().unwrap()];
        let leader = Identity::of(members[0].id().unwrap()).unwrap();
        let stat = || Stat::read(Path::new(PROC), leader.pid).unwrap().unwrap();
        while stat().state != b'Z' {
            tokio::time::sleep(Duration::from_millis(5)).await; // pause: between two looks
        }
        assert!(leader.is_alive());
        let family = Family::marked(Marker::random(), vec![leader], None);
        assert_eq!(family.end(Duration::ZERO).await, Ok(1));
        are_dead(&mut members).await;
    }

    /// Whoever started a process knows it before the process is the program that it was started for.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_process_is_found_from_its_first_moment() {
        for _ in 0..100 {
            let family = Family::marked(Marker::random(), Vec::new(), None);
            let mut young = Command::new("setsid")
                .args(["sleep", "1000"])
                .env(MARKER_VARIABLE, family.marker.as_str())
                .kill_on_drop(true)
                .spawn()
                .unwrap();
            assert_eq!(family.end(Duration::ZERO).await, Ok(1));
            // Dead, though the kernel may be at clearing up.
            tokio::time::timeout(Duration::from_secs(10), young.wait()).await.unwrap().unwrap();
        }
    }

    #[tokio::test]
    async fn processes_that_cannot_be_looked_for_count_as_survivors() {
        let family = Family::marked(Marker::random(), Vec::new(), None);
        let directory = tempfile::tempdir().unwrap();
        let proc = directory.path();
        assert!(looked(&family, &proc.join("not-mounted")).is_err());
        // Gone since it was listed, wholly or in part.
        shown(proc, 4_000_001, None);
        shown(proc, 4_000_002, Some(&sleeping(4_000_002)));
        assert_eq!(looked(&family, proc).unwrap(), (Vec::new(), 0));
        // Neither file can be read as what it is.
        let unreadable = shown(proc, 4_000_003, Some(&sleeping(4_000_003)));
        fs::create_dir(unreadable.join("environ")).unwrap();
        assert_eq!(looked(&family, proc).unwrap(), (Vec::new(), 1));
        let end = || family.end_in(proc, Duration::ZERO, Duration::ZERO);
        assert_eq!(end().await, Err(Survivors { count: 1 }));
        fs::remove_dir(unreadable.join("environ")).unwrap();
        assert_eq!(end().await, Ok(0));
        shown(proc, 4_000_004, Some("4000004 (app"));
        assert_eq!(looked(&family, proc).unwrap(), (Vec::new(), 1));
    }

    #[tokio::test]
    async fn a_process_whose_id_was_reused_is_left_alone() {
        let mut bystander = Command::new("sleep").arg("60").kill_on_drop(true).spawn().unwrap();
        let pid = bystander.id().unwrap();
        let real = Identity::of(pid).unwrap();
        let reused = Identity { pid: real.pid, started_ticks: real.started_ticks + 1 };
        signal(reused, Signal::KILL);
        let family = Family::marked(Marker::random(), vec![reused], None);
        assert_eq!(family.end(Duration::ZERO).await, Ok(0));
        assert_eq!(bystander.try_wait().unwrap(), None, "the bystander still runs");
        bystander.kill().await.unwrap();
    }
}
