//! Every reason for which the gateway answers itself instead of the app, in one place.
//!
//! A denial says which status it has, which stable code programs see, which words people see, and under which label
//! it is counted. Words never hold a host, port, address or anything that the requester did not know before.
//!
//! Not here: rendering (`pages`), deciding (`admission`, `request_check`, `connection`).

use http::StatusCode;

/// A request whose wire form has more than one meaning or goes past a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum ProtocolFault {
    #[error("the request line must be `METHOD target HTTP/1.1`")]
    RequestLine,
    #[error("the HTTP version must be 1.0, 1.1 or 2")]
    Version,
    #[error("this method is not served here")]
    Method,
    #[error("CONNECT is not served here")]
    Connect,
    #[error("the request target must begin with `/` and hold no spaces or control characters")]
    Target,
    #[error("the request target must begin with `/`; its host stands in the Host header alone")]
    AbsoluteForm,
    #[error("`:authority` and the Host header must name the same host")]
    AuthorityHost,
    #[error("a request must have one Host header")]
    MissingHost,
    #[error("a request must not have two Host headers")]
    RepeatedHost,
    #[error("the Host header is not a host name with an optional port")]
    InvalidHost,
    #[error("lines must end with CRLF")]
    BareLineFeed,
    #[error("a header must not be folded over several lines")]
    FoldedHeader,
    #[error("a header name must be a token directly followed by a colon")]
    HeaderName,
    #[error("a header value must not hold control characters")]
    HeaderValue,
    #[error("the head of a request may have at most 16 KiB")]
    HeadTooLarge,
    #[error("a request may have at most 100 headers")]
    TooManyHeaders,
    #[error("Content-Length must be one decimal number")]
    ContentLength,
    #[error("a request must not have two Content-Length headers")]
    RepeatedContentLength,
    #[error("a request must not have both Content-Length and Transfer-Encoding")]
    LengthAndEncoding,
    #[error("Transfer-Encoding must be `chunked`, once")]
    TransferEncoding,
    #[error("a chunk must be a plain hexadecimal size, without extensions or trailers")]
    Chunk,
    #[error("an HTTP/1.0 request must not have a body")]
    OldVersionBody,
    #[error("the only accepted upgrade is one `websocket` on a GET without a body")]
    UpgradeToken,
    #[error("the only accepted expectation is `100-continue`")]
    Expectation,
}

impl ProtocolFault {
    pub const ALL: [Self; 24] = [
        Self::RequestLine,
        Self::Version,
        Self::Method,
        Self::Connect,
        Self::Target,
        Self::AbsoluteForm,
        Self::AuthorityHost,
        Self::MissingHost,
        Self::RepeatedHost,
        Self::InvalidHost,
        Self::BareLineFeed,
        Self::FoldedHeader,
        Self::HeaderName,
        Self::HeaderValue,
        Self::HeadTooLarge,
        Self::TooManyHeaders,
        Self::ContentLength,
        Self::RepeatedContentLength,
        Self::LengthAndEncoding,
        Self::TransferEncoding,
        Self::Chunk,
        Self::OldVersionBody,
        Self::UpgradeToken,
        Self::Expectation,
    ];

    /// Stable name for programs and metrics.
    pub const fn code(self) -> &'static str {
        match self {
            Self::RequestLine => "bad_request_line",
            Self::Version => "bad_version",
            Self::Method => "method_not_served",
            Self::Connect => "connect_not_served",
            Self::Target => "bad_target",
            Self::AbsoluteForm => "absolute_form",
            Self::AuthorityHost => "authority_host_mismatch",
            Self::MissingHost => "host_missing",
            Self::RepeatedHost => "host_repeated",
            Self::InvalidHost => "host_invalid",
            Self::BareLineFeed => "bare_line_feed",
            Self::FoldedHeader => "folded_header",
            Self::HeaderName => "bad_header_name",
            Self::HeaderValue => "bad_header_value",
            Self::HeadTooLarge => "head_too_large",
            Self::TooManyHeaders => "too_many_headers",
            Self::ContentLength => "bad_content_length",
            Self::RepeatedContentLength => "content_length_repeated",
            Self::LengthAndEncoding => "content_length_with_transfer_encoding",
            Self::TransferEncoding => "bad_transfer_encoding",
            Self::Chunk => "bad_chunk",
            Self::OldVersionBody => "http_1_0_body",
            Self::UpgradeToken => "upgrade_not_served",
            Self::Expectation => "bad_expectation",
        }
    }

    pub fn from_code(code: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|fault| fault.code() == code)
    }

    pub const fn status(self) -> StatusCode {
        match self {
            Self::HeadTooLarge | Self::TooManyHeaders => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::Expectation => StatusCode::EXPECTATION_FAILED,
            Self::Version => StatusCode::HTTP_VERSION_NOT_SUPPORTED,
            Self::Method | Self::Connect => StatusCode::METHOD_NOT_ALLOWED,
            Self::RequestLine
            | Self::Target
            | Self::AbsoluteForm
            | Self::AuthorityHost
            | Self::MissingHost
            | Self::RepeatedHost
            | Self::InvalidHost
            | Self::BareLineFeed
            | Self::FoldedHeader
            | Self::HeaderName
            | Self::HeaderValue
            | Self::ContentLength
            | Self::RepeatedContentLength
            | Self::LengthAndEncoding
            | Self::TransferEncoding
            | Self::Chunk
            | Self::OldVersionBody
            | Self::UpgradeToken => StatusCode::BAD_REQUEST,
        }
    }
}

/// Why the gateway answers itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Denial {
    Protocol(ProtocolFault),
    /// The connection was opened for another host (TLS server name).
    Misdirected,
    /// No valid session. The same for unknown, private and archived hosts: existence is not revealed.
    AccessRequired,
    /// Two cookies of our name: somebody tossed one in. Both are cleared.
    DuplicateSession,
    LinkRevoked,
    LinkExpired,
    /// The session was minted before the link was rotated.
    LinkRotated,
    /// The team closed the workspace for links while this session was open.
    WorkspaceClosed,
    /// The link does not open this route family or service.
    RouteNotIncluded,
    /// The path is not declared for websockets.
    WebsocketNotDeclared,
    /// The path can be read in two ways.
    AmbiguousPath,
    /// An unsafe method or a websocket from another origin.
    ForeignOrigin,
    /// A subresource or frame of another site.
    ForeignSite,
    /// The gateway has not heard from the log for too long to know the current rights.
    AuthorizationStale,
    WakeBudgetSpent,
    /// The organization's usage cap or policy refuses to wake.
    WakeRefused,
    /// Waited as long as a held request may.
    WakeTimeout,
    /// Too many requests are already waiting for a wake.
    TooManyHeld,
    WakeFailed,
    /// A secret that the app declares is missing or may not be used. Which one is for the team alone.
    SecretsRefused,
    UpstreamUnreachable,
    UpstreamTimeout,
    /// The app's answer was not valid HTTP, or a wrong websocket handshake.
    UpstreamInvalid,
    /// All connections to the app are in use.
    UpstreamBusy,
    BodyTooLarge,
    /// An upload that stopped under way.
    BodyTooSlow,
    /// A websocket handshake without a valid version or key.
    BadHandshake,
    /// A path that the gateway keeps for itself but does not serve.
    NotFound,
    MethodNotAllowed,
    /// The share form was sent from another page.
    ForeignForm,
    /// A share URL that opens nothing (any more). The same for unknown, forged, rotated, revoked and expired ones.
    LinkEnded,
    /// The single-use code is wrong, used, late, or from another browser.
    HandoffInvalid,
    TooManySessions,
    /// A member's session has ended, or the one from which it was opened.
    SignedOut,
    /// A member may not open this workspace, or not any more.
    RightEnded,
    /// A member's handoff is wrong, used, late, or from another browser.
    SignInInvalid,
    /// Our own command side could not be reached.
    TryAgain,
}

/// What people read. Never the name of anything the requester could not know.
pub struct Words {
    pub title: &'static str,
    pub detail: &'static str,
}

macro_rules! denials {
    ($($pattern:pat => $status:ident, $code:expr, $title:literal, $detail:literal;)*) => {
        impl Denial {
            pub const fn status(self) -> StatusCode {
                match self {
                    Self::Protocol(fault) => fault.status(),
                    $($pattern => StatusCode::$status,)*
                }
            }

            /// Stable name for programs, and the label of the metric `gateway_denials_total`.
            pub const fn code(self) -> &'static str {
                match self {
                    Self::Protocol(fault) => fault.code(),
                    $($pattern => $code,)*
                }
            }

            pub const fn words(self) -> Words {
                match self {
                    Self::Protocol(_) => Words {
                        title: "This request could not be understood",
                        detail: "The way the request was written is not accepted here.",
                    },
                    $($pattern => Words { title: $title, detail: $detail },)*
                }
            }
        }
    };
}

denials! {
    Self::Misdirected => MISDIRECTED_REQUEST, "misdirected_request",
        "Wrong address", "This connection was opened for another address. Please try again.";
    Self::AccessRequired => FORBIDDEN, "access_required",
        "Open your link again", "To see this page, use the link that was shared with you. It opens a fresh visit in this browser.";
    Self::DuplicateSession => FORBIDDEN, "duplicate_session",
        "Open your link again", "This browser sent two visits at once, so neither was used. Please open the link that was shared with you again.";
    Self::LinkRevoked => GONE, "link_revoked",
        "This link was closed", "The person who shared it has ended access. Ask them for a new link if you still need one.";
    Self::LinkExpired => GONE, "link_expired",
        "This link has expired", "It was open for a limited time. Ask the person who shared it for a new one.";
    Self::LinkRotated => GONE, "link_rotated",
        "This link was replaced", "A newer link exists. Ask the person who shared it to send it to you.";
    Self::WorkspaceClosed => GONE, "workspace_closed",
        "This page is no longer shared", "The team has stopped sharing it. Ask them if you still need access.";
    Self::RouteNotIncluded => FORBIDDEN, "route_not_included",
        "Not part of this link", "Your link opens other parts of this app, but not this one.";
    Self::WebsocketNotDeclared => FORBIDDEN, "websocket_not_declared",
        "Not part of this link", "Live connections are not open at this address.";
    Self::AmbiguousPath => BAD_REQUEST, "ambiguous_path",
        "This address is not accepted", "The address can be read in more than one way. Please check it and try again.";
    Self::ForeignOrigin => FORBIDDEN, "foreign_origin",
        "Blocked for your safety", "Another website tried to act here in your name.";
    Self::ForeignSite => FORBIDDEN, "foreign_site",
        "Blocked for your safety", "This page can be opened directly, but not from inside another website.";
    Self::AuthorizationStale => SERVICE_UNAVAILABLE, "authorization_stale",
        "One moment, please", "Access cannot be confirmed right now. This usually passes within seconds.";
    Self::WakeBudgetSpent => TOO_MANY_REQUESTS, "wake_budget_spent",
        "The app is resting", "This link has started the app as often as it may. Ask the person who shared it to start it for you.";
    Self::WakeRefused => SERVICE_UNAVAILABLE, "wake_refused",
        "The app cannot start now", "The team's settings do not allow it to start right now. Please ask the person who shared the link.";
    Self::WakeTimeout => SERVICE_UNAVAILABLE, "wake_timeout",
        "Still starting", "The app is taking longer than usual. Please try again in a moment.";
    Self::TooManyHeld => SERVICE_UNAVAILABLE, "too_many_held",
        "Still starting", "Many people are waiting for this app. Please try again in a moment.";
    Self::WakeFailed => BAD_GATEWAY, "wake_failed",
        "The app did not start", "Something in the app keeps it from starting. The team can see why; please let them know.";
    Self::SecretsRefused => BAD_GATEWAY, "secrets_refused",
        "The app did not start", "It needs a secret that is not set, or that it may not use. The team can see which one; please let them know.";
    Self::UpstreamUnreachable => BAD_GATEWAY, "app_unreachable",
        "The app does not answer", "It is running but did not accept the connection. Please try again in a moment.";
    Self::UpstreamTimeout => GATEWAY_TIMEOUT, "app_timeout",
        "The app did not answer in time", "Please try again in a moment.";
    Self::UpstreamInvalid => BAD_GATEWAY, "app_answer_invalid",
        "The app gave a broken answer", "Please try again, and let the team know if it keeps happening.";
    Self::UpstreamBusy => SERVICE_UNAVAILABLE, "app_busy",
        "The app is busy", "It is already answering as many requests as it can. Please try again in a moment.";
    Self::BodyTooLarge => PAYLOAD_TOO_LARGE, "body_too_large",
        "Too much data", "The upload is larger than what is accepted here.";
    Self::BodyTooSlow => REQUEST_TIMEOUT, "body_too_slow",
        "The upload stopped", "Nothing more of it arrived for too long. Please try again.";
    Self::BadHandshake => BAD_REQUEST, "bad_websocket_handshake",
        "Not a valid live connection", "The connection must use WebSocket version 13 with a valid key.";
    Self::NotFound => NOT_FOUND, "not_found",
        "Nothing here", "There is no page at this address.";
    Self::MethodNotAllowed => METHOD_NOT_ALLOWED, "method_not_allowed",
        "Not possible here", "This address does not accept that kind of request.";
    Self::ForeignForm => FORBIDDEN, "foreign_form",
        "Please start from the link", "Open the link that was shared with you and continue from there.";
    Self::LinkEnded => GONE, "link_ended",
        "This link is not open", "It may have expired, been closed, or been copied incompletely. Ask the person who shared it for a new one.";
    Self::HandoffInvalid => FORBIDDEN, "handoff_invalid",
        "Open your link again", "That step works only once and only for a few seconds. Please open the link that was shared with you again.";
    Self::TooManySessions => TOO_MANY_REQUESTS, "too_many_sessions",
        "This link is very busy", "It has been opened as often as it may. Ask the person who shared it for another one.";
    Self::SignedOut => UNAUTHORIZED, "signed_out",
        "You are signed out", "Your session in this browser has ended. Open the workspace again to sign in.";
    Self::RightEnded => FORBIDDEN, "workspace_not_allowed",
        "You may not open this workspace", "Your role does not let you open it, or not any more. An administrator of your organization can change that.";
    Self::SignInInvalid => FORBIDDEN, "sign_in_invalid",
        "Please sign in again", "That step works only once, only for a few seconds, and only in the browser where it was begun. Open the workspace again.";
    Self::TryAgain => SERVICE_UNAVAILABLE, "try_again",
        "One moment, please", "This could not be finished right now. Please try again.";
}

impl Denial {
    /// Seconds after which trying again is worthwhile; `None` where it is not.
    pub const fn retry_after_secs(self) -> Option<u32> {
        match self {
            Self::AuthorizationStale | Self::TryAgain | Self::UpstreamBusy => Some(2),
            Self::WakeTimeout | Self::TooManyHeld | Self::UpstreamUnreachable => Some(5),
            Self::WakeRefused => Some(60),
            _ => None,
        }
    }

    /// Whether our session cookie is taken away with the answer. Not where a link has ended: the cookie opens nothing
    /// any more, and with it a reload still says what became of the link.
    pub const fn clears_session(self) -> bool {
        matches!(self, Self::DuplicateSession)
    }

    /// Whether somebody who reads this may get further by signing in.
    pub const fn leaves_signing_in(self) -> bool {
        matches!(
            self,
            Self::AccessRequired
                | Self::DuplicateSession
                | Self::LinkRevoked
                | Self::LinkExpired
                | Self::LinkRotated
                | Self::RouteNotIncluded
                | Self::HandoffInvalid
                | Self::SignedOut
                | Self::SignInInvalid
                | Self::RightEnded
        )
    }

    /// Whether what the app left in the browser ends here.
    pub const fn ends_visit(self) -> bool {
        matches!(
            self,
            Self::LinkRevoked
                | Self::LinkExpired
                | Self::LinkRotated
                | Self::WorkspaceClosed
                | Self::SignedOut
                | Self::RightEnded
        )
    }
}

impl From<ProtocolFault> for Denial {
    fn from(fault: ProtocolFault) -> Self {
        Self::Protocol(fault)
    }
}
