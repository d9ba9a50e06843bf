//! What people see of EnvForge's own pages, wherever they are served: one look, escaped by construction, under a content
//! policy that names exactly what the page holds.
//!
//! Self-contained, without any resource from elsewhere. Not here: words, and who serves which page when (gateway, api).

mod markup;

use std::sync::LazyLock;

use aws_lc_rs::digest;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, REFERRER_POLICY,
    X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};

pub use markup::Markup;

static STYLE: &str = include_str!("style.css");
static STYLE_SOURCE: LazyLock<String> = LazyLock::new(|| source(STYLE));

static X_ROBOTS_TAG: HeaderName = HeaderName::from_static("x-robots-tag");
static OPENER_POLICY: HeaderName = HeaderName::from_static("cross-origin-opener-policy");

/// A content policy's name for one inline text.
fn source(inline: &str) -> String {
    format!("'sha256-{}'", STANDARD.encode(digest::digest(&digest::SHA256, inline.as_bytes())))
}

/// Headers of every answer of ours, page or not.
pub fn protect(headers: &mut HeaderMap) {
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(&X_ROBOTS_TAG, HeaderValue::from_static("noindex, nofollow"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
}

/// What a page may do besides showing itself.
#[derive(Default)]
pub struct Allowances<'a> {
    /// One script of ours, which may ask its own origin.
    pub script: Option<&'static str>,
    /// Sources beside its own origin that its forms may lead to, through redirects, which Chromium holds against
    /// `form-action` too. `None`: there is no form.
    pub forms_to: Option<&'a [&'a str]>,
}

/// A page's text, and its headers in place.
pub fn page(
    title: &str,
    allow: &Allowances<'_>,
    headers: &mut HeaderMap,
    content: impl FnOnce(Markup) -> Markup,
) -> String {
    let html = Markup::default()
        .raw("<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">")
        .raw("<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\"><title>")
        .text(title)
        .raw("</title><link rel=\"icon\" href=\"data:,\"><style>")
        .raw(STYLE)
        .raw("</style></head><body><main>")
        .raw(
            "<svg class=\"mark\" viewBox=\"0 0 40 40\" fill=\"none\" aria-hidden=\"true\"><rect x=\"1.5\" y=\"1.5\" \
             width=\"37\" height=\"37\" rx=\"11\" fill=\"currentColor\" opacity=\".12\"/><path d=\"M12 14h16M12 \
             20h11M12 26h16\" stroke=\"currentColor\" stroke-width=\"3\" stroke-linecap=\"round\"/></svg>",
        )
        .then(content)
        .raw("</main>")
        .then(|html| match allow.script {
            Some(script) => html.raw("<script>").raw(script).raw("</script>"),
            None => html,
        })
        .raw("</body></html>")
        .finish();
    protect(headers);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    let script =
        allow.script.map_or_else(String::new, |script| format!("; script-src {}; connect-src 'self'", source(script)));
    let forms = match allow.forms_to {
        None => "'none'".to_owned(),
        Some(others) => others.iter().fold("'self'".to_owned(), |forms, other| format!("{forms} {other}")),
    };
    let policy = format!(
        "default-src 'none'; style-src {}; img-src data:{script}; form-action {forms}; base-uri 'none'; frame-ancestors 'none'",
        *STYLE_SOURCE
    );
    if let Ok(policy) = HeaderValue::from_str(&policy) {
        headers.insert(CONTENT_SECURITY_POLICY, policy);
    }
    headers.insert(X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    headers.insert(&OPENER_POLICY, HeaderValue::from_static("same-origin"));
    html
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn policy(allow: &Allowances<'_>) -> String {
        let mut headers = HeaderMap::new();
        page("A page", allow, &mut headers, |html| html.raw("<h1>A page</h1>"));
        headers[CONTENT_SECURITY_POLICY].to_str().unwrap().to_owned()
    }

    #[test]
    fn the_content_policy_names_exactly_what_the_page_holds() {
        let plain = policy(&Allowances::default());
        assert!(plain.contains(&source(STYLE)) && plain.contains("default-src 'none'"));
        assert!(!plain.contains("unsafe") && !plain.contains("script-src"));
        assert!(plain.contains("form-action 'none'") && plain.contains("frame-ancestors 'none'"));
        let more = policy(&Allowances { script: Some("go()"), forms_to: Some(&["https://*.dev.envforge.ai"]) });
        assert!(more.contains(&format!("script-src {}", source("go()"))), "{more}");
        assert!(more.contains("form-action 'self' https://*.dev.envforge.ai;"), "{more}");
    }
}
