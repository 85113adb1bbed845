//! Probes: does one kind of question gain more than another?

use super::error::ReportError;
use super::sign_test::sign_test;
use crate::bootstrap::{BootstrapSettings, Ratio, bootstrap_interval};
use crate::compare::Estimate;
use crate::table::{add_row, new_table, set_header, show};
use serde::Serialize;
use simfluence_core::{Example, Examples, Scores};
use std::collections::BTreeMap;
use std::collections::HashMap;

/// Columns by which a probe's examples are read.
pub(super) const KIND: &str = "kind";
pub(super) const UNIT: &str = "unit";
const FACTS: &str = "facts";

pub(super) fn column<'a>(example: &'a Example, name: &'static str) -> Result<&'a str, ReportError> {
    example.column(name).ok_or_else(|| ReportError::NoColumn {
        key: example.key.clone(),
        column: name,
    })
}

/// Checks that scores and examples are of the same run set.
pub(super) fn same_examples(
    which: &'static str,
    keys: &[String],
    examples: &Examples,
) -> Result<(), ReportError> {
    let all = examples.as_slice();
    let position = (0..keys.len().max(all.len()))
        .find(|&k| keys.get(k).map(String::as_str) != all.get(k).map(|e| e.key.as_str()));
    match position {
        None => Ok(()),
        Some(position) => Err(ReportError::OtherExamples {
            which,
            position,
            expected: all.get(position).map_or("", |e| &e.key).to_owned(),
            got: keys.get(position).cloned().unwrap_or_default(),
        }),
    }
}

/// For every test example the mean score of the training examples that belong to it (those named
/// in its column `facts`).
///
/// # Errors
/// Test examples other than those of the scores; one without the column, or that names a training
/// example without scores; a score that is not finite.
pub fn own_influence(scores: &Scores, test: &Examples) -> Result<Vec<f64>, ReportError> {
    same_examples("test", &scores.test_keys, test)?;
    let ids: HashMap<&str, usize> = scores
        .train_keys
        .iter()
        .enumerate()
        .map(|(i, key)| (key.as_str(), i))
        .collect();
    let columns = scores.test_keys.len();
    let mean = |(j, example): (usize, &Example)| {
        let facts: Vec<&str> = column(example, FACTS)?.split_whitespace().collect();
        let mut sum = 0.0;
        for fact in &facts {
            let id = ids.get(fact).ok_or_else(|| ReportError::UnknownFact {
                test_key: example.key.clone(),
                train_key: (*fact).to_owned(),
            })?;
            sum += f64::from(scores.values[id * columns + j]);
        }
        if facts.is_empty() {
            return Err(ReportError::NoColumn {
                key: example.key.clone(),
                column: FACTS,
            });
        }
        if !sum.is_finite() {
            return Err(ReportError::NotFinite {
                what: "the summed score of the facts",
                place: format!("of {:?}", example.key),
                got: sum,
            });
        }
        Ok(sum / facts.len() as f64)
    };
    test.as_slice().iter().enumerate().map(mean).collect()
}

/// One kind of question against another, unit by unit (a unit is a chain, a set, a pair).
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Contrast {
    /// The kind whose values come first, `right` for instance.
    pub first: String,
    /// The kind that is subtracted, `wrong` for instance.
    pub second: String,
    /// Number of units that have both.
    pub units: usize,
    /// Mean of the first kind over units.
    pub mean_first: f64,
    /// Mean of the second kind over units.
    pub mean_second: f64,
    /// Mean of first − second over units, with its bootstrap interval over units.
    pub difference: Estimate,
    /// Units with first > second.
    pub positive: usize,
    /// Units with first < second.
    pub negative: usize,
    /// Two-sided p-value of the [`sign_test`] over units; `None` if no unit differs.
    pub sign_test: Option<f64>,
}

/// Compares two kinds of test examples by `values`, one per test example: influences
/// ([`own_influence`]), losses, or changes of losses.
///
/// Values of the same kind and unit are averaged first. Units are what is resampled, for the
/// questions of one unit share its facts.
///
/// # Errors
/// Another number of values than test examples; a value that is not finite; an example without
/// the column `kind` or `unit`; a kind that no example has, or no unit with both kinds.
pub fn contrast(
    test: &Examples,
    values: &[f64],
    first: &str,
    second: &str,
    settings: &BootstrapSettings,
) -> Result<Contrast, ReportError> {
    if values.len() != test.len() {
        return Err(ReportError::Shape {
            what: "values of test examples",
            expected: test.len(),
            got: values.len(),
        });
    }
    let (a, b) = (
        by_unit(test, values, first)?,
        by_unit(test, values, second)?,
    );
    let pairs: Vec<(f64, f64)> = a
        .iter()
        .filter_map(|(unit, value)| Some((*value, *b.get(unit)?)))
        .collect();
    if pairs.is_empty() {
        return Err(ReportError::TooFew {
            what: "units with both kinds of questions",
            got: 0,
            needed: 1,
        });
    }
    let count = pairs.len() as f64;
    let units: Vec<Ratio> = pairs
        .iter()
        .map(|(a, b)| Ratio {
            numerator: a - b,
            denominator: 1.0,
        })
        .collect();
    let positive = pairs.iter().filter(|(a, b)| a > b).count();
    let negative = pairs.iter().filter(|(a, b)| a < b).count();
    Ok(Contrast {
        first: first.to_owned(),
        second: second.to_owned(),
        units: pairs.len(),
        mean_first: pairs.iter().map(|p| p.0).sum::<f64>() / count,
        mean_second: pairs.iter().map(|p| p.1).sum::<f64>() / count,
        difference: Estimate {
            value: units.iter().map(|u| u.numerator).sum::<f64>() / count,
            interval: bootstrap_interval(&units, settings),
        },
        positive,
        negative,
        sign_test: sign_test(positive, negative),
    })
}

/// The mean value of a kind in every unit that has it, in order of the units' names.
fn by_unit<'a>(
    test: &'a Examples,
    values: &[f64],
    kind: &str,
) -> Result<BTreeMap<&'a str, f64>, ReportError> {
    let mut sums: BTreeMap<&str, (f64, f64)> = BTreeMap::new();
    for (example, &value) in test.as_slice().iter().zip(values) {
        if column(example, KIND)? != kind {
            continue;
        }
        if !value.is_finite() {
            return Err(ReportError::NotFinite {
                what: "the value of",
                place: format!("test example {:?}", example.key),
                got: value,
            });
        }
        let sum = sums.entry(column(example, UNIT)?).or_default();
        *sum = (sum.0 + value, sum.1 + 1.0);
    }
    if sums.is_empty() {
        return Err(ReportError::UnknownKind {
            kind: kind.to_owned(),
            kinds: test.groups(KIND).0.join(", "),
        });
    }
    let means = sums
        .into_iter()
        .map(|(unit, (sum, count))| (unit, sum / count));
    Ok(means.collect())
}

/// Several contrasts for people, one per line.
pub fn contrasts_text(contrasts: &[Contrast]) -> String {
    let mut table = new_table();
    set_header(
        &mut table,
        [
            "first − second",
            "units",
            "mean first",
            "mean second",
            "difference",
            "+ / −",
            "sign test p",
        ],
    );
    for contrast in contrasts {
        let name = format!("{} − {}", contrast.first, contrast.second);
        let difference = contrast.difference;
        let cells = [
            contrast.units.to_string(),
            show(Some(contrast.mean_first), None),
            show(Some(contrast.mean_second), None),
            show(Some(difference.value), difference.interval),
            format!("{} / {}", contrast.positive, contrast.negative),
            show(contrast.sign_test, None),
        ];
        add_row(&mut table, &name, cells);
    }
    format!(
        "{table}\n[low, high]: bootstrap interval over units. + / −: units where the first is larger, smaller.\n"
    )
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::reports) fn example(key: &str, columns: &[(&str, &str)]) -> Example {
        let mut example = Example::new(key, "d");
        for (name, value) in columns {
            example
                .extra
                .insert((*name).to_owned(), (*value).to_owned());
        }
        example
    }

    pub(in crate::reports) fn scores(train: &[&str], test: &Examples, values: Vec<f32>) -> Scores {
        Scores {
            method: "m".into(),
            train_keys: train.iter().map(|&k| k.to_owned()).collect(),
            test_keys: test.keys(),
            reference_learning_rate: 1.0,
            has_natural_unit: true,
            values,
            layers: Vec::new(),
            provenance: Default::default(),
        }
    }

    fn questions() -> Examples {
        let question = |unit: &str, kind: &str, facts: &str| {
            let columns = [("unit", unit), ("kind", kind), ("facts", facts)];
            example(&format!("{unit}-{kind}"), &columns)
        };
        Examples::new(vec![
            question("u", "right", "a b"),
            question("u", "wrong", "a b"),
            question("v", "right", "c"),
            question("v", "wrong", "c"),
        ])
        .unwrap()
    }

    #[test]
    fn own_influence_is_the_mean_over_the_facts_of_a_question() {
        let test = questions();
        #[rustfmt::skip]
        let values = vec![
            1.0, 2.0, 9.0, 9.0,
            3.0, 8.0, 9.0, 9.0,
            9.0, 9.0, 5.0, 7.0,
        ];
        let scores = scores(&["a", "b", "c"], &test, values);
        let own = own_influence(&scores, &test).unwrap();
        assert_eq!(own, [2.0, 5.0, 5.0, 7.0]);
        let got = contrast(&test, &own, "right", "wrong", &BootstrapSettings::default()).unwrap();
        assert_eq!((got.mean_first, got.mean_second), (3.5, 6.0));
        assert_eq!(got.difference.value, -2.5);
        assert_eq!((got.positive, got.negative), (0, 2));
        // Both of two have the same sign: 2 · ¼.
        assert_eq!(got.sign_test, Some(0.5));
        let interval = got.difference.interval.unwrap();
        assert_eq!((interval.low, interval.high), (-3.0, -2.0));
    }

    #[test]
    fn what_is_missing_is_named() {
        let test = questions();
        let settings = BootstrapSettings::default();
        let message = |error: ReportError| error.to_string();
        let unknown = contrast(&test, &[0.0; 4], "right", "sideways", &settings);
        assert!(message(unknown.unwrap_err()).contains("right, wrong"));
        let short = scores(&["a"], &test, vec![0.0; 4]);
        assert!(message(own_influence(&short, &test).unwrap_err()).contains("\"b\""));
        let plain = Examples::new(vec![Example::new("u-right", "d")]).unwrap();
        let without = contrast(&plain, &[0.0], "right", "wrong", &settings);
        assert!(message(without.unwrap_err()).contains("no column \"kind\""));
        let other = own_influence(&short, &plain).unwrap_err();
        assert!(message(other).contains("same run set"));
    }
}
