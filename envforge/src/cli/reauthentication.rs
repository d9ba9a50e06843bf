//! Proving once more who one is, when the API asks for it in the middle of a command.
//!
//! The prompt runs on a thread of its own so that Ctrl-C ends the command; the terminal gets its echo back in any case. Not here:
//! when the proof is needed (the API) and repeating the request (`client`).

use std::io::IsTerminal;

use envforge_domain::secret::Secret;
use nix::sys::termios::{SetArg, Termios, tcgetattr, tcsetattr};

use super::failure::Failure;

/// Puts the terminal back as it was.
struct AsItWas(Option<Termios>);

impl AsItWas {
    fn remember() -> Self {
        Self(tcgetattr(std::io::stdin()).ok())
    }
}

impl Drop for AsItWas {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            let _ = tcsetattr(std::io::stdin(), SetArg::TCSANOW, before);
        }
    }
}

/// Whether somebody is there to be asked.
pub(super) fn possible() -> bool {
    std::io::stdin().is_terminal() && std::io::stderr().is_terminal()
}

/// Asks for the password of whoever is signed in.
pub(super) async fn password(email: &str) -> Result<Secret, Failure> {
    let prompt = format!("This needs a fresh proof of who you are.\nPassword of {}: ", super::output::printable(email));
    let (answer, answered) = tokio::sync::oneshot::channel();
    let _as_it_was = AsItWas::remember();
    std::thread::spawn(move || {
        // Nobody may be waiting any more.
        let _ = answer.send(rpassword::prompt_password(prompt));
    });
    let typed = answered.await.map_err(|_| Failure::Interrupted)??;
    if typed.is_empty() { Err(Failure::usage("no password was typed", "")) } else { Ok(Secret::new(typed)) }
}
