//! The generated pages are what the model says. `UPDATE=1` rewrites them.

use std::path::Path;

use podmotion_model::docs;

fn is_current(name: &str, page: &str) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
    let path = folder.join(name);
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, page).expect("write the page");
    }
    let found = std::fs::read_to_string(&path).expect("read the page");
    assert_eq!(
        found, page,
        "docs/{name} is not current: run `UPDATE=1 cargo test -p podmotion-model`"
    );
}

#[test]
fn the_page_about_annotations_is_current() {
    is_current("annotations.md", &docs::annotations());
}

#[test]
fn the_page_about_reasons_is_current() {
    is_current("why-awake.md", &docs::why_awake());
}
