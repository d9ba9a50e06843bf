//! What holds for every manifest and for every text.

use envforge_domain::limits;
use envforge_domain::manifest::{Manifest, ManifestErrors};
use proptest::prelude::*;

use crate::generated::{fragments, manifest};

/// Every error has a place within the file and says something; they come in its order and are bounded.
fn check_errors(text: &str, errors: &ManifestErrors) -> Result<(), TestCaseError> {
    prop_assert!(!errors.errors().is_empty() && errors.errors().len() <= ManifestErrors::LISTED_MAX);
    prop_assert!(errors.omitted() == 0 || errors.errors().len() == ManifestErrors::LISTED_MAX);
    prop_assert!(errors.errors().is_sorted_by_key(|error| error.position));
    let lines = text.replace("\r\n", "\n").split(['\n', '\r']).count();
    for error in errors.errors() {
        prop_assert!((1..=lines).contains(&error.position.line) && error.position.column >= 1, "{error}");
        prop_assert!(!error.found.is_empty() && !error.expected.is_empty());
        prop_assert!(
            !error
                .to_string()
                .contains(|character: char| character.is_control() || ('\u{202a}'..='\u{202e}').contains(&character)),
            "{error}"
        );
    }
    Ok(())
}

proptest! {
    #[test]
    fn the_canonical_text_is_read_back_as_the_same_manifest(manifest in manifest()) {
        let text = manifest.render();
        prop_assume!(text.len() <= limits::MANIFEST_BYTES_MAX);
        let read = Manifest::parse(&text);
        prop_assert_eq!(read.as_ref(), Ok(&manifest), "{}", text);
        prop_assert_eq!(read.unwrap().render(), text);
    }

    #[test]
    fn different_manifests_have_different_digests(left in manifest(), right in manifest()) {
        prop_assert_eq!(left == right, left.digest() == right.digest());
    }

    #[test]
    fn no_text_makes_the_parser_panic(text in any::<String>()) {
        if let Err(errors) = Manifest::parse(&text) {
            check_errors(&text, &errors)?;
        }
    }

    #[test]
    fn no_pieces_of_yaml_make_the_parser_panic(text in fragments()) {
        if let Err(errors) = Manifest::parse(&text) {
            check_errors(&text, &errors)?;
        }
    }

    /// A valid file with one place overwritten: mostly valid YAML, so this reaches the rules behind it.
    #[test]
    fn a_damaged_manifest_is_refused_in_words_or_still_stores(
        manifest in manifest(),
        place in any::<prop::sample::Index>(),
        length in 0..12_usize,
        piece in fragments(),
    ) {
        let mut text: Vec<char> = manifest.render().chars().collect();
        let start = place.index(text.len());
        let end = (start + length).min(text.len());
        text.splice(start..end, piece.chars().take(8));
        let text: String = text.into_iter().collect();
        match Manifest::parse(&text) {
            Ok(read) => {
                let canonical = read.render();
                prop_assert_eq!(Manifest::parse(&canonical), Ok(read), "{}", canonical);
            }
            Err(errors) => check_errors(&text, &errors)?,
        }
    }
}
