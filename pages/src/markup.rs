//! HTML that is escaped by construction: literals of ours go in as they are, everything else only escaped.

/// A growing document.
#[derive(Default)]
pub struct Markup(String);

impl Markup {
    /// Markup of our own source code. `'static`, so that no value from outside can come this way.
    pub fn raw(mut self, markup: &'static str) -> Self {
        self.0.push_str(markup);
        self
    }

    /// Text from anywhere, right in element content and in double-quoted attributes.
    pub fn text(mut self, text: &str) -> Self {
        for character in text.chars() {
            match character {
                '&' => self.0.push_str("&amp;"),
                '<' => self.0.push_str("&lt;"),
                '>' => self.0.push_str("&gt;"),
                '"' => self.0.push_str("&quot;"),
                '\'' => self.0.push_str("&#39;"),
                // Bidirectional controls could make a name read as another.
                '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {}
                character if character.is_control() => self.0.push(' '),
                character => self.0.push(character),
            }
        }
        self
    }

    pub fn then(self, more: impl FnOnce(Self) -> Self) -> Self {
        more(self)
    }

    pub fn finish(self) -> String {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_cannot_become_markup() {
        let html =
            Markup::default().raw("<p>").text("<script>alert('x')</script>\u{202e}\"&\u{0}").raw("</p>").finish();
        assert_eq!(html, "<p>&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;&quot;&amp; </p>");
    }

    proptest! {
        #[test]
        fn no_text_opens_a_tag_or_ends_an_attribute(text in "\\PC{0,80}") {
            let html = Markup::default().text(&text).finish();
            prop_assert!(!html.contains(['<', '>', '"', '\'']));
        }
    }
}
