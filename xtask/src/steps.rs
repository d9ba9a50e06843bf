//! Running a list of named steps, one line with its time for each.
//!
//! It does not know what a step does.

use anyhow::{Result, bail};
use std::io::Write;
use std::time::Instant;

/// Runs steps in order and remembers which failed, so that one run shows everything there is to mend.
pub(crate) struct Steps {
    failed: Vec<&'static str>,
}

impl Steps {
    pub(crate) fn new() -> Self {
        Self { failed: Vec::new() }
    }

    /// Runs `step`; its text, if any, is shown behind the line.
    pub(crate) fn run(&mut self, name: &'static str, step: impl FnOnce() -> Result<String>) {
        print!("{name:<28}");
        let _ = std::io::stdout().flush();
        let begun = Instant::now();
        let outcome = step();
        let seconds = begun.elapsed().as_secs_f64();
        match outcome {
            Ok(note) if note.is_empty() => println!(" ok     {seconds:6.1} s"),
            Ok(note) => println!(" ok     {seconds:6.1} s  {note}"),
            Err(error) => {
                println!(" FAILED {seconds:6.1} s");
                eprintln!("{error:#}\n");
                self.failed.push(name);
            }
        }
    }

    /// An error that names the failed steps, if there were any.
    pub(crate) fn finish(self) -> Result<()> {
        if !self.failed.is_empty() {
            bail!("failed: {}", self.failed.join(", "));
        }
        Ok(())
    }
}
