//! `cargo xtask fuzz`: feeds the parsers of tokens and headers with inputs that nobody has written.
//!
//! A target is a file `fuzz/fuzz_targets/NAME.rs`, whose first line says what it feeds and holds. It is built with the compiler's
//! coverage counters, which the stable compiler has, and run by libFuzzer. `fuzz/inputs/NAME` is committed, and each input there is run
//! again by the ordinary tests; what a run finds beyond it is kept in `fuzz/corpus/NAME`, and `--keep` takes a part of it
//! over. Not here: what a target does (`fuzzing` of the crate that owns the parser).

use crate::workspace::Workspace;
use anyhow::{Context, Result, bail};
use clap::Args;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

/// LLVM's own pass, whose counters libFuzzer reads.
const COVERAGE: [&str; 5] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
];
/// Longer inputs are not made: no head may be longer.
const INPUT_BYTES_MAX: u32 = 20 * 1024;
/// One input that takes longer is a finding.
const INPUT_SECONDS_MAX: u32 = 10;
const MEMORY_MIB_MAX: u32 = 4 * 1024;
/// Inputs that are taken over at once, at most.
const KEPT_MAX: usize = 100;

/// `cargo xtask fuzz`.
#[derive(Args)]
pub(crate) struct Options {
    /// Which target, or `all`; without it they are listed.
    name: Option<String>,
    /// How long each runs.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=1440))]
    minutes: u64,
    /// Runs one input instead, such as one that an earlier run has written to `fuzz/artifacts`.
    #[arg(long, conflicts_with = "keep")]
    input: Option<PathBuf>,
    /// Afterwards writes those of the found inputs to `fuzz/inputs` that reach something new. Look at them, and commit them.
    #[arg(long)]
    keep: bool,
}

pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    let targets = targets(workspace)?;
    let Some(name) = &options.name else {
        for (name, what) in &targets {
            println!("  {name:<16} {what}");
        }
        return Ok(());
    };
    let chosen: Vec<&String> = targets.keys().filter(|known| name == "all" || name == *known).collect();
    if chosen.is_empty() {
        bail!("no target is called {name}; `cargo xtask fuzz` lists them");
    }
    let folder = build(workspace, &chosen)?;
    let mut failed = Vec::new();
    for name in chosen {
        let target = Target::new(workspace, &folder, name)?;
        let fine = match &options.input {
            Some(input) => target.replay(input)?,
            None => target.fuzz(options.minutes)?,
        };
        if !fine {
            failed.push(name.as_str());
        } else if options.keep {
            target.keep()?;
        }
    }
    if !failed.is_empty() {
        bail!("failed: {}; the inputs are in fuzz/artifacts, and above stands what each has shown", failed.join(", "));
    }
    Ok(())
}

/// Names of targets and what each feeds and holds.
fn targets(workspace: &Workspace) -> Result<BTreeMap<String, String>> {
    let folder = workspace.root().join("fuzz/fuzz_targets");
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let what = text.lines().next().unwrap_or_default().trim_start_matches("//!").trim().to_owned();
        found.insert(path.file_stem().unwrap_or_default().to_string_lossy().into_owned(), what);
    }
    Ok(found)
}

/// Builds them; answers where they are. With a target of its own, so that build scripts and macros count nothing.
fn build(workspace: &Workspace, names: &[&String]) -> Result<PathBuf> {
    let host = host(&workspace.output_of(workspace.command("rustc").arg("-vV"))?)?;
    let mut cargo = workspace.cargo();
    cargo.args(["build", "--locked", "--release", "--manifest-path", "fuzz/Cargo.toml", "--target", &host]);
    cargo.args(["--target-dir", "fuzz/target"]).env("RUSTFLAGS", COVERAGE.join(" "));
    for name in names {
        cargo.args(["--bin", name.as_str()]);
    }
    println!("building (minutes, the first time)");
    if !cargo.status()?.success() {
        bail!("the targets were not built");
    }
    Ok(workspace.root().join("fuzz/target").join(host).join("release"))
}

/// The machine that the compiler is for, as its long version says.
fn host(version: &str) -> Result<String> {
    let line = version.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(line.context("`rustc -vV` names no host")?.trim().to_owned())
}

/// A target that was built, and the folders of its inputs.
struct Target<'a> {
    workspace: &'a Workspace,
    name: &'a str,
    program: PathBuf,
    committed: PathBuf,
    found: PathBuf,
    artifacts: PathBuf,
}

impl<'a> Target<'a> {
    fn new(workspace: &'a Workspace, folder: &Path, name: &'a str) -> Result<Self> {
        let of = |kind: &str| workspace.root().join("fuzz").join(kind).join(name);
        let (committed, found, artifacts) = (of("inputs"), of("corpus"), of("artifacts"));
        for folder in [&found, &artifacts] {
            std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        }
        Ok(Self { workspace, name, program: folder.join(name), committed, found, artifacts })
    }

    fn command(&self) -> Command {
        let mut command = self.workspace.command(&self.program);
        command
            .arg(format!("-artifact_prefix={}/", self.artifacts.display()))
            .arg(format!("-timeout={INPUT_SECONDS_MAX}"))
            .arg(format!("-rss_limit_mb={MEMORY_MIB_MAX}"));
        command
    }

    /// Whether nothing was found.
    fn fuzz(&self, minutes: u64) -> Result<bool> {
        println!("{}: {minutes} minutes", self.name);
        let begun = Instant::now();
        let mut command = self.command();
        command
            .arg(format!("-max_total_time={}", minutes * 60))
            .arg(format!("-max_len={INPUT_BYTES_MAX}"))
            .args(["-print_final_stats=1", "-use_value_profile=1"]);
        let dictionary = self.workspace.root().join("fuzz/dictionaries").join(format!("{}.dict", self.name));
        if dictionary.is_file() {
            command.arg(format!("-dict={}", dictionary.display()));
        }
        let fine = command.args([&self.found, &self.committed]).status()?.success();
        println!(
            "{}: {:.1} minutes, {}",
            self.name,
            begun.elapsed().as_secs_f64() / 60.0,
            if fine { "nothing found" } else { "FAILED" }
        );
        Ok(fine)
    }

    fn replay(&self, input: &Path) -> Result<bool> {
        let input = std::path::absolute(input).context("the input's path")?;
        Ok(self.command().arg(input).status()?.success())
    }

    /// Adds to the committed inputs some of a smallest set that reaches what all found ones reach.
    fn keep(&self) -> Result<()> {
        let chosen = self.artifacts.join("kept");
        if chosen.exists() {
            std::fs::remove_dir_all(&chosen)?;
        }
        std::fs::create_dir(&chosen)?;
        // By the code that is reached alone, and not how often: many times fewer.
        let mut merge = self.command();
        merge.args(["-set_cover_merge=1", "-use_counters=0", "-use_cmp=0"]);
        if !merge.args([&chosen, &self.committed, &self.found]).status()?.success() {
            bail!("the inputs of {} could not be merged", self.name);
        }
        let known = contents(&self.committed)?.into_iter().map(|(_, bytes)| bytes).collect::<BTreeSet<_>>();
        let mut new: Vec<_> = contents(&chosen)?.into_iter().filter(|(_, bytes)| !known.contains(bytes)).collect();
        // Short ones break off early, long ones repeat much: some of each.
        new.sort_by_key(|(_, bytes)| bytes.len());
        let mut kept = 0;
        for (name, bytes) in new.iter().step_by(new.len().div_ceil(KEPT_MAX).max(1)) {
            std::fs::write(self.committed.join(name), bytes)?;
            kept += 1;
        }
        std::fs::remove_dir_all(&chosen)?;
        println!("{}: {kept} inputs added to {}", self.name, self.committed.display());
        Ok(())
    }
}

/// Names and contents of a folder's files.
fn contents(folder: &Path) -> Result<Vec<(OsString, Vec<u8>)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let entry = entry?;
        found.push((entry.file_name(), std::fs::read(entry.path())?));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_compilers_host_is_read_from_its_long_version() {
        assert_eq!(
            host("rustc 1.95.0\nbinary: rustc\nhost: x86_64-unknown-linux-gnu\n").unwrap(),
            "x86_64-unknown-linux-gnu"
        );
        assert!(host("rustc 1.95.0").is_err());
    }

    #[test]
    fn every_fuzz_target_is_built_and_has_inputs() {
        let workspace = Workspace::locate().unwrap();
        let manifest = std::fs::read_to_string(workspace.root().join("fuzz/Cargo.toml")).unwrap();
        let targets = targets(&workspace).unwrap();
        assert!(targets.len() > 9, "{targets:?}");
        for (name, what) in targets {
            assert!(manifest.contains(&format!("name = \"{name}\"\n")), "fuzz/Cargo.toml has no {name}");
            assert!(what.len() > 20, "{name} does not say what it holds");
            assert!(workspace.root().join("fuzz/inputs").join(&name).is_dir(), "{name} has no inputs");
        }
    }
}
