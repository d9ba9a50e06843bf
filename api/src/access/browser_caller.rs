//! Who is signed in in a browser, by one of its cookies: for the pages that people sign in, go on and sign out with.
//!
//! Not here: requests to the API itself, where a browser's session for workspaces counts for nothing (`access`).

use envforge_identity::sign_in::{Presented, VerifyError};
use http::HeaderMap;

use super::{Access, Caller};
use crate::browser::Cookie;
use crate::edge::Arrival;
use crate::problem::Problem;

impl Access {
    /// Whom this cookie of a browser speaks for. A session is asked for by the cookie of its own surface: under another name it is
    /// nobody's. Whether it still counts, `Sessions::in_browser` asks.
    pub(crate) async fn presented_in_browser(
        &self,
        cookie: Cookie,
        headers: &HeaderMap,
        arrival: &Arrival,
    ) -> Result<Option<Caller>, Problem> {
        let Some(value) = self.browsers.as_ref().and_then(|browsers| browsers.get(cookie, headers)) else {
            return Ok(None);
        };
        let signed_in = match self.identity.verify(Presented::Cookie(&value), arrival.now).await {
            Ok(signed_in) => signed_in,
            Err(VerifyError::Cookie | VerifyError::Token(_)) => return Ok(None),
            Err(VerifyError::Credentials(error)) => return Err(Problem::internal(error.to_string())),
        };
        if cookie.surface() != Some(signed_in.surface) {
            return Ok(None);
        }
        Ok(Some(Caller::signed_in(&signed_in, *arrival)))
    }
}
