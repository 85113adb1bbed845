use super::{Row, read};
use crate::text::TableSettings;
use serde_json::Value;
use std::path::{Path, PathBuf};

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data/tables")
        .join(name)
}

fn settings(split: Option<&str>) -> TableSettings {
    TableSettings {
        split: split.map(str::to_owned),
        ..toml::from_str(
            "text = \"{text}\"\ndataset = \"{label}\"\ntrain_per_dataset = 1\ntest_per_dataset = 1",
        )
        .unwrap()
    }
}

fn rows(path: &Path) -> Vec<Row> {
    read(&settings(None), path).unwrap()
}

fn error(path: &Path, split: Option<&str>) -> String {
    read(&settings(split), path).unwrap_err().to_string()
}

/// Rows by `tests/data/tables/make.py`.
fn expected() -> Vec<Row> {
    serde_json::from_str(&std::fs::read_to_string(data("rows.json")).unwrap()).unwrap()
}

/// A copy of the folder with two datasets.
fn copied() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in [
        "dataset_info.json",
        "state.json",
        "data-00000-of-00002.arrow",
        "data-00001-of-00002.arrow",
    ] {
        std::fs::copy(data("dataset").join(name), folder.path().join(name)).unwrap();
    }
    folder
}

#[test]
fn ref_parquet_and_arrow_rows_are_those_of_pyarrow() {
    for name in [
        "snappy.parquet",
        "zstd.parquet",
        "gzip.parquet",
        "rows.arrow",
    ] {
        let got = rows(&data(name));
        assert_eq!(got.len(), 6);
        for (row, wanted) in got.iter().zip(expected()) {
            assert_eq!(*row, wanted, "{name}");
        }
    }
}

#[test]
fn ref_folders_of_datasets_hold_the_rows_of_all_their_files() {
    let of_datasets = |mut rows: Vec<Row>| {
        for row in &mut rows {
            row.remove("class");
            row.remove("price");
        }
        rows
    };
    let all = of_datasets(expected());
    assert_eq!(rows(&data("dataset")), all);
    let split = |name| read(&settings(Some(name)), &data("splits")).unwrap();
    assert_eq!(split("train"), all[..4]);
    assert_eq!(split("test"), [all[5].clone(), all[4].clone()]);
}

#[test]
fn json_lines_hold_the_same_rows() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.jsonl");
    let line = |row: Row| Value::Object(row).to_string() + "\n";
    let text: String = expected().into_iter().map(line).collect();
    std::fs::write(&path, text).unwrap();
    assert_eq!(rows(&path), expected());
}

#[test]
fn a_list_of_objects_holds_them_too_and_a_byte_order_mark_is_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.json");
    std::fs::copy(data("rows.json"), &path).unwrap();
    assert_eq!(rows(&path), expected());
    let columns = |row: &Row| row.keys().cloned().collect::<Vec<_>>();
    assert_eq!(columns(&rows(&path)[0])[..3], ["key", "text", "label"]);
    std::fs::write(&path, "\u{feff}{\"b\": 1, \"a\": 2}\n\n{\"b\": 3}\n").unwrap();
    assert_eq!(columns(&rows(&path)[0]), ["b", "a"]);
    for (text, place) in [("[{\"a\": 1},\n 2]", "line 2"), ("{}\n{", "line 2")] {
        std::fs::write(&path, text).unwrap();
        let message = error(&path, None);
        assert!(message.contains(place), "{message}");
    }
}

#[test]
fn a_compression_that_is_not_built_in_is_named() {
    let message = error(&data("brotli.parquet"), None);
    assert!(
        message.contains("BROTLI") && message.contains("gzip"),
        "{message}"
    );
}

#[test]
fn a_split_is_asked_for_where_there_are_some_and_only_there() {
    let message = error(&data("splits"), None);
    assert!(
        message.contains("data.split") && message.contains("train, test"),
        "{message}"
    );
    let message = error(&data("splits"), Some("dev"));
    assert!(
        message.contains("\"dev\"") && message.contains("train, test"),
        "{message}"
    );
    for path in ["dataset", "rows.arrow"] {
        assert!(error(&data(path), Some("train")).contains("leave it out"));
    }
    assert!(error(&data(""), None).contains("state.json"));
    assert!(error(&data("rows.txt"), None).contains(".parquet"));
}

#[test]
fn an_arrow_file_that_was_cut_off_is_refused_wherever_the_cut_is() {
    let whole = std::fs::read(data("rows.arrow")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cut.arrow");
    for length in 0..whole.len() {
        std::fs::write(&path, &whole[..length]).unwrap();
        let message = error(&path, None);
        assert!(message.contains("cut.arrow"), "{message}");
    }
    // The end mark alone makes no stream.
    std::fs::write(&path, &whole[whole.len() - 8..]).unwrap();
    assert!(error(&path, None).contains("cut.arrow"));
    std::fs::write(&path, b"ARROW1\0\0").unwrap();
    assert!(error(&path, None).contains("Arrow stream"));
}

#[test]
fn a_parquet_file_that_was_cut_off_is_refused() {
    let whole = std::fs::read(data("snappy.parquet")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cut.parquet");
    for length in [0, 7, whole.len() / 2, whole.len() - 1] {
        std::fs::write(&path, &whole[..length]).unwrap();
        let message = error(&path, None);
        assert!(message.contains("cut.parquet"), "{message}");
    }
}

#[test]
fn a_folder_whose_state_does_not_fit_is_refused() {
    let folder = copied();
    let state = folder.path().join("state.json");
    let text = std::fs::read_to_string(&state).unwrap();
    let write = |from: &str, to: &str| std::fs::write(&state, text.replace(from, to)).unwrap();
    write("data-00001", "../data-00001");
    assert!(error(folder.path(), None).contains("../data-00001"));
    write("data-00001", "data-00007");
    assert!(error(folder.path(), None).contains("data-00007"));
    write(
        "\"_data_files\"",
        "\"_indices_files\": [{\"filename\": \"x\"}], \"_data_files\"",
    );
    assert!(error(folder.path(), None).contains("save_to_disk"));
    write("{", "[");
    assert!(error(folder.path(), None).contains("state.json"));
}
