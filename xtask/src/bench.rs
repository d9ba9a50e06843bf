//! `cargo xtask bench`: which benchmarks there are, the peers they need, and on which cores they run.
//!
//! The measurements are the package `bench`: a benchmark is a file `bench/src/benches/NAME.rs` (`_` for `-`), whose first line says what it
//! compares, run as `envforge-bench NAME --rounds N`. None is listed that does not exist.

use crate::tools;
use crate::workspace::{Workspace, on_path};
use anyhow::{Context, Result, bail};
use clap::Args;
use envforge_testkit::tools::Tool;
use std::collections::BTreeMap;

/// The cargo profile of the benchmarked binaries.
const PROFILE: &str = "production";

/// `cargo xtask bench`.
#[derive(Args)]
pub(crate) struct Options {
    /// Which benchmark; without it they are listed.
    name: Option<String>,
    /// How often ours and the peer take turns.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// What the benchmark itself understands, after `--`: `--seconds 1` a turn, `--commits 100000` in a replayed log.
    #[arg(last = true)]
    rest: Vec<String>,
}

pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    let benches = benches(workspace)?;
    let listed = if benches.is_empty() {
        "there is no benchmark in bench/src/benches yet".to_owned()
    } else {
        let lines: Vec<String> = benches.iter().map(|(name, what)| format!("  {name:<12} {what}")).collect();
        format!("benchmarks:\n{}", lines.join("\n"))
    };
    let Some(name) = &options.name else {
        println!("{listed}");
        return Ok(());
    };
    if !benches.contains_key(name) {
        bail!("no benchmark is called {name}; {listed}");
    }
    let toolbox = tools::ensure(workspace, &[Tool::NatsServer, Tool::PostgresBin, Tool::Nginx, Tool::Wrk])?;
    let cores = Cores::of_this_process()?;

    // Built first and on all cores; only the measurement is confined.
    let status = workspace
        .cargo()
        .args(["build", "--locked", "--profile", PROFILE, "--package", "envforge-bench", "--package", "envforge"])
        .status()?;
    if !status.success() {
        bail!("the benchmark was not built");
    }
    let folder = target_folder(workspace)?.join(PROFILE);
    let mut bench = workspace
        .command(on_path("taskset").context("`taskset` is missing: it is in util-linux, and benchmarks pin cores")?);
    bench.args(["--cpu-list", &cores.load_list()]).arg(folder.join("envforge-bench"));
    bench.args([name, "--rounds", &options.rounds.to_string()]).args(&options.rest);
    for (variable, path) in toolbox.environment() {
        bench.env(variable, path);
    }
    // What is measured runs on the one core, through `taskset --cpu-list`; load, peers' upstreams and the bench itself on the others.
    bench
        .env("ENVFORGE_BENCH_MEASURED_CORE", cores.measured.to_string())
        .env("ENVFORGE_BENCH_LOAD_CORES", cores.load_list());
    if !bench.status()?.success() {
        bail!("{name} could not be measured to its end");
    }
    Ok(())
}

/// Names of benchmarks and what each compares.
fn benches(workspace: &Workspace) -> Result<BTreeMap<String, String>> {
    let folder = workspace.root().join("bench/src/benches");
    let mut found = BTreeMap::new();
    if !folder.is_dir() {
        return Ok(found);
    }
    for entry in std::fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        let name = path.file_stem().and_then(|name| name.to_str()).unwrap_or_default().replace('_', "-");
        if path.extension().is_some_and(|extension| extension == "rs") && name != "mod" {
            let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
            let what = text.lines().next().unwrap_or_default().trim_start_matches("//!").trim().to_owned();
            found.insert(name, what);
        }
    }
    Ok(found)
}

/// Where cargo puts what it builds; `CARGO_TARGET_DIR` and configuration may have moved it.
fn target_folder(workspace: &Workspace) -> Result<std::path::PathBuf> {
    let mut cargo = workspace.cargo();
    cargo.args(["metadata", "--no-deps", "--format-version", "1", "--locked"]);
    let metadata: serde_json::Value =
        serde_json::from_str(&workspace.output_of(&mut cargo)?).context("cargo metadata")?;
    Ok(metadata["target_directory"].as_str().context("cargo metadata names no target_directory")?.into())
}

/// The cores this process may use: one for what is measured, the others for load.
#[derive(Debug, PartialEq)]
struct Cores {
    measured: u32,
    load: Vec<u32>,
}

impl Cores {
    fn of_this_process() -> Result<Self> {
        let status = std::fs::read_to_string("/proc/self/status").context("benchmarks pin cores, which needs Linux")?;
        let list = status
            .lines()
            .find_map(|line| line.strip_prefix("Cpus_allowed_list:"))
            .context("/proc/self/status names no cores")?;
        Self::from_list(list.trim())
    }

    /// Reads the kernel's notation, e.g. `0-2,5`.
    fn from_list(list: &str) -> Result<Self> {
        let mut cores = Vec::new();
        for range in list.split(',') {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let parse =
                |number: &str| number.trim().parse::<u32>().with_context(|| format!("not a list of cores: {list}"));
            cores.extend(parse(first)?..=parse(last)?);
        }
        match cores.as_slice() {
            [measured, load @ ..] if !load.is_empty() => Ok(Self { measured: *measured, load: load.to_vec() }),
            _ => bail!(
                "only core {list} may be used: a benchmark needs one core for what is measured and one for the load"
            ),
        }
    }

    fn load_list(&self) -> String {
        self.load.iter().map(u32::to_string).collect::<Vec<_>>().join(",")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_core_is_measured_and_the_others_make_load() {
        let cores = Cores::from_list("0-2,5").unwrap();
        assert_eq!(cores, Cores { measured: 0, load: vec![1, 2, 5] });
        assert_eq!(cores.load_list(), "1,2,5");
    }

    #[test]
    fn a_single_core_is_refused() {
        assert!(Cores::from_list("3").unwrap_err().to_string().contains("only core 3"));
        assert!(Cores::from_list("x").unwrap_err().to_string().contains("not a list of cores"));
    }
}
