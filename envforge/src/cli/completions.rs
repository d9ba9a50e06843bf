//! `envforge completions`: scripts that complete commands and options in a shell.
//!
//! Not here: names of workspaces and the like, which a script would have to ask the API for.

use std::io::Write;

use clap::{Args, ValueEnum};
use clap_complete::Shell;

use super::failure::{Exit, Failure};

#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  envforge completions bash > ~/.local/share/bash-completion/completions/envforge
  envforge completions zsh  > ~/.zfunc/_envforge
  envforge completions fish > ~/.config/fish/completions/envforge.fish")]
pub(crate) struct CompletionsArguments {
    /// The shell to write a script for
    shell: ShellName,
}

/// The shells that are tested.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ShellName {
    Bash,
    Zsh,
    Fish,
}

pub(super) fn print(arguments: CompletionsArguments, mut whole: clap::Command) -> Result<Exit, Failure> {
    let shell = match arguments.shell {
        ShellName::Bash => Shell::Bash,
        ShellName::Zsh => Shell::Zsh,
        ShellName::Fish => Shell::Fish,
    };
    // Into memory first: the generator panics where the output is closed.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut whole, "envforge", &mut script);
    let mut out = std::io::stdout().lock();
    out.write_all(&script)?;
    out.flush()?;
    Ok(Exit::Ok)
}
