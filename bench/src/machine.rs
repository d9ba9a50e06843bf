//! The machine under the benchmark: what it is, which core is measured and which make the load, and how much processor time was used.
//!
//! Not here: what is run on it (each benchmark).

use std::fmt::Write;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use envforge_testkit::{Postgres, PostgresOptions};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::time::{ClockId, clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;

/// Which core runs what is measured, and which run servers, load and the benchmark itself.
#[derive(Clone, Debug)]
pub(crate) struct Cores {
    pub(crate) measured: usize,
    pub(crate) load: Vec<usize>,
}

impl Cores {
    /// As `cargo xtask bench` says; without it, the first core that this process may use is measured and the others make the load.
    #[allow(clippy::disallowed_methods, reason = "cargo xtask bench names the cores in ENVFORGE_BENCH_* variables")]
    pub(crate) fn choose() -> Result<Self> {
        let given = |name: &str| std::env::var(name).ok();
        let (measured, load) = match (given("ENVFORGE_BENCH_MEASURED_CORE"), given("ENVFORGE_BENCH_LOAD_CORES")) {
            (Some(measured), Some(load)) => {
                let parse =
                    |text: &str| text.trim().parse().with_context(|| format!("`{text}` is not a core's number"));
                (parse(&measured)?, load.split(',').map(parse).collect::<Result<Vec<usize>>>()?)
            }
            _ => {
                let allowed = sched_getaffinity(Pid::from_raw(0)).context("which cores may be used")?;
                let cores: Vec<usize> =
                    (0..CpuSet::count()).filter(|core| allowed.is_set(*core).unwrap_or(false)).collect();
                match cores.split_first() {
                    Some((measured, load)) if !load.is_empty() => (*measured, load.to_vec()),
                    _ => bail!("one core may be used; a benchmark needs one for what is measured and one for the load"),
                }
            }
        };
        pin(&load)?;
        Ok(Self { measured, load })
    }

    /// Lets this thread, and what it starts from now on, use all the cores: for comparisons of whole systems, whose parts the kernel places.
    pub(crate) fn use_all(&self) -> Result<()> {
        pin(&[&[self.measured], &self.load[..]].concat())
    }

    /// The program, started on the measured core.
    pub(crate) fn measured_command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new("taskset");
        command.arg("--cpu-list").arg(self.measured.to_string()).arg(program.as_ref());
        command
    }
}

/// A PostgreSQL with the settings that it comes with; the testkit's own are small ones that start quickly.
pub(crate) fn usual_postgres() -> Postgres {
    let settings =
        [("max_connections", "100"), ("shared_buffers", "128MB"), ("min_wal_size", "80MB"), ("max_wal_size", "1GB")];
    let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    Postgres::start_with(PostgresOptions { durable: true, settings })
}

/// A multi-threaded runtime, as the product's.
pub(crate) fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().context("the async runtime did not start")
}

fn pin(cores: &[usize]) -> Result<()> {
    let mut set = CpuSet::new();
    for core in cores {
        set.set(*core).with_context(|| format!("core {core}"))?;
    }
    sched_setaffinity(Pid::from_raw(0), &set).with_context(|| format!("cannot run on cores {cores:?}"))
}

/// Processor time of this process so far, all threads.
pub(crate) fn own_cpu() -> Duration {
    clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).map(Duration::from).unwrap_or_default()
}

/// Processor time of another process so far, threads that have ended included, to the nanosecond.
pub(crate) fn cpu_of(process: u32) -> Result<Duration> {
    let clock = clock_getcpuclockid(Pid::from_raw(i32::try_from(process)?)).context("the measured process is gone")?;
    Ok(clock_gettime(clock).context("its processor time")?.into())
}

/// Resident memory of a process, in MiB.
pub(crate) fn resident_mib_of(process: u32) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).context("the measured process is gone")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS in /proc")?;
    let kib: f64 = line.trim().trim_end_matches("kB").trim().parse().context("VmRSS")?;
    Ok(kib / 1024.0)
}

/// The processes directly below one, as nginx's workers are below its master.
pub(crate) fn children_of(process: u32) -> Vec<u32> {
    let text = std::fs::read_to_string(format!("/proc/{process}/task/{process}/children")).unwrap_or_default();
    text.split_whitespace().filter_map(|child| child.parse().ok()).collect()
}

/// What stands above every result.
pub(crate) fn facts(cores: &Cores) -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo");
    let model = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .map(|rest| rest.trim_start_matches([' ', '\t', ':']));
    let memory = read("/proc/meminfo");
    let memory_gib = memory
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|rest| rest.trim().trim_end_matches("kB").trim().parse::<f64>().ok())
        .unwrap_or_default()
        / 1_048_576.0;
    let kernel = read("/proc/sys/kernel/osrelease");
    let load = read("/proc/loadavg");
    let load = load.split_whitespace().next().unwrap_or("?");
    let mut text = String::new();
    let count = cores.load.len() + 1;
    let _ = writeln!(
        text,
        "machine: {}, {count} cores used, {memory_gib:.0} GiB, Linux {}, load average {load} at the start",
        model.unwrap_or("unknown processor"),
        kernel.trim(),
    );
    let _ = writeln!(text, "other work on this machine shows as noise: trust ratios and processor time before rates");
    text
}
