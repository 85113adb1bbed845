//! The frequencies of rotary positions, plain and scaled for longer contexts.

use super::config::ConfigError;
use super::fields::Fields;
use crate::decoder::Rotary;
use serde_json::Value;
use std::f64::consts::PI;

/// What the rotary fields of a model mean where `config.json` does not say.
pub(super) struct Defaults {
    /// Names of the base and of the rotated share in older files.
    pub base: &'static str,
    pub share: &'static str,
    /// The rotated share of each head.
    pub default_share: f64,
    /// Which scalings the model has.
    pub scalings: &'static [&'static str],
}

/// Scalings that are implemented.
pub(super) const SCALINGS: &[&str] = &["default", "linear", "llama3", "yarn"];

/// The base where none is given.
const BASE: f64 = 10_000.0;

/// Reads `rope_parameters`, or the older `rope_scaling` with the base and the share beside it.
pub(super) fn rotary(
    fields: &Fields,
    head_width: u32,
    context: u32,
    defaults: &Defaults,
) -> Result<Rotary, ConfigError> {
    let outer_base = fields.positive_or(defaults.base, BASE)?;
    let outer_share = fields.positive_or(defaults.share, defaults.default_share)?;
    let (older, newer) = (
        fields.object("rope_scaling")?,
        fields.object("rope_parameters")?,
    );
    let Some(scaling) = older.or(newer) else {
        let pairs = pairs(fields, defaults.share, head_width, outer_share)?;
        return Ok(Rotary {
            frequencies: plain(outer_base, pairs),
            amplitude: 1.0,
        });
    };
    let base = scaling.positive_or("rope_theta", outer_base)?;
    let share = scaling.positive_or("partial_rotary_factor", outer_share)?;
    let frequencies = plain(
        base,
        pairs(&scaling, "partial_rotary_factor", head_width, share)?,
    );
    let kind = match scaling.text("rope_type")? {
        Some(kind) => {
            scaling.raw("type");
            kind
        }
        None => scaling.text("type")?.unwrap_or("default"),
    };
    if !defaults.scalings.contains(&kind) {
        let supported = defaults.scalings.join(", ");
        return Err(scaling.unsupported("rope_type", &Value::from(kind), &supported));
    }
    let original = || -> Result<f64, ConfigError> {
        let outer = fields.number_or_none("original_max_position_embeddings")?;
        let own = scaling.number_or_none("original_max_position_embeddings")?;
        Ok(outer.or(own).unwrap_or(f64::from(context)))
    };
    let rotary = match kind {
        "linear" => linear(&scaling, frequencies)?,
        "llama3" => llama3(&scaling, frequencies, original()?)?,
        "yarn" => yarn(&scaling, frequencies, base, original()?)?,
        _ => Rotary {
            frequencies,
            amplitude: 1.0,
        },
    };
    scaling.finish(&["original_max_position_embeddings"])?;
    Ok(rotary)
}

/// Pairs of values that are rotated.
fn pairs(fields: &Fields, name: &str, head_width: u32, share: f64) -> Result<usize, ConfigError> {
    let rotated = (f64::from(head_width) * share) as u32;
    if share > 1.0 || rotated == 0 || !rotated.is_multiple_of(2) {
        let supported = format!("a share of 1 at most that makes an even number of {head_width}");
        return Err(fields.unsupported(name, &share.into(), &supported));
    }
    Ok(rotated as usize / 2)
}

/// `base^(−k / pairs)`.
fn plain(base: f64, pairs: usize) -> Vec<f64> {
    (0..pairs)
        .map(|k| base.powf(k as f64 / pairs as f64).recip())
        .collect()
}

/// Position interpolation: all frequencies over the factor.
///
/// # Reference
/// Chen et al. 2023, "Extending context window of large language models via positional
/// interpolation".
fn linear(scaling: &Fields, frequencies: Vec<f64>) -> Result<Rotary, ConfigError> {
    let factor = factor(scaling)?;
    Ok(Rotary {
        frequencies: frequencies.into_iter().map(|f| f / factor).collect(),
        amplitude: 1.0,
    })
}

/// Llama 3.1: wavelengths that fit the original context less often than `low_freq_factor` times are
/// stretched by the factor, those that fit more often than `high_freq_factor` times are kept, and
/// frequencies between are mixed linearly.
fn llama3(scaling: &Fields, frequencies: Vec<f64>, original: f64) -> Result<Rotary, ConfigError> {
    let factor = factor(scaling)?;
    let low = scaling.number("low_freq_factor")?;
    let high = scaling.number("high_freq_factor")?;
    if high <= low {
        let supported = format!("more than low_freq_factor, {low}");
        return Err(scaling.unsupported("high_freq_factor", &high.into(), &supported));
    }
    let scaled = |frequency: f64| {
        let periods = original * frequency / (2.0 * PI);
        let kept = ((periods - low) / (high - low)).clamp(0.0, 1.0);
        kept * frequency + (1.0 - kept) * frequency / factor
    };
    Ok(Rotary {
        frequencies: frequencies.into_iter().map(scaled).collect(),
        amplitude: 1.0,
    })
}

/// YaRN: interpolation of the slow pairs, a ramp between, and a temperature of the attention.
///
/// # Reference
/// Peng et al. 2023, "YaRN", sections 3.2 to 3.4.
fn yarn(
    scaling: &Fields,
    frequencies: Vec<f64>,
    base: f64,
    original: f64,
) -> Result<Rotary, ConfigError> {
    let factor = factor(scaling)?;
    let fast = scaling.positive_or("beta_fast", 32.0)?;
    let slow = scaling.positive_or("beta_slow", 1.0)?;
    let width = 2.0 * frequencies.len() as f64;
    // The pair, counted in values, that turns so often within the original context.
    let place = |turns: f64| width * (original / (turns * 2.0 * PI)).ln() / (2.0 * base.ln());
    let (mut first, mut last) = (place(fast), place(slow));
    if scaling.flag_or("truncate", true)? {
        (first, last) = (first.floor(), last.ceil());
    }
    let (first, mut last) = (first.max(0.0), last.min(width - 1.0));
    if first == last {
        last += 0.001;
    }
    let scaled = |(k, frequency): (usize, f64)| {
        let slowed = ((k as f64 - first) / (last - first)).clamp(0.0, 1.0);
        frequency / factor * slowed + frequency * (1.0 - slowed)
    };
    let magnitude = |weight: f64| {
        if factor <= 1.0 {
            1.0
        } else {
            0.1 * weight * factor.ln() + 1.0
        }
    };
    let weight = scaling.number_or("mscale", 0.0)?;
    let weight_of_all = scaling.number_or("mscale_all_dim", 0.0)?;
    let amplitude = match scaling.number_or_none("attention_factor")? {
        Some(given) => given,
        None if weight != 0.0 && weight_of_all != 0.0 => {
            magnitude(weight) / magnitude(weight_of_all)
        }
        None => magnitude(1.0),
    };
    Ok(Rotary {
        frequencies: frequencies.into_iter().enumerate().map(scaled).collect(),
        amplitude,
    })
}

fn factor(scaling: &Fields) -> Result<f64, ConfigError> {
    let factor = scaling.number("factor")?;
    if factor >= 1.0 {
        return Ok(factor);
    }
    Err(scaling.unsupported("factor", &factor.into(), "at least 1"))
}

#[cfg(test)]
mod tests {
    use crate::decoder::Positions;
    use crate::hugging_face::Config;
    use serde::Deserialize;
    use serde_json::{Value, json};

    #[derive(Deserialize)]
    struct Row {
        parameters: Value,
        frequencies: Vec<f64>,
        amplitude: f64,
    }

    fn config(field: &str, parameters: &Value) -> Value {
        json!({
            "model_type": "llama", "vocab_size": 9, "hidden_size": 64, "intermediate_size": 8,
            "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 65536,
            field: parameters,
        })
    }

    fn check(row: &Row, config: &Value) {
        let decoder = Config::parse(&config.to_string())
            .unwrap()
            .decoder()
            .unwrap();
        let Positions::Rotary(rotary) = decoder.positions else {
            panic!("rotary positions");
        };
        assert_eq!(rotary.frequencies.len(), row.frequencies.len());
        for (got, expected) in rotary.frequencies.iter().zip(&row.frequencies) {
            assert!((got / expected - 1.0).abs() < 1e-14, "{got} {expected}");
        }
        assert!((rotary.amplitude - row.amplitude).abs() < 1e-14);
    }

    /// Numbers by `tests/data/make.py` (transformers 5.23).
    #[test]
    fn ref_scaled_frequencies_are_those_of_transformers() {
        let text = include_str!("../../tests/data/rotary.json");
        let rows: Vec<Row> = serde_json::from_str(text).unwrap();
        assert_eq!(rows.len(), 5);
        for row in &rows {
            check(row, &config("rope_parameters", &row.parameters));
            // As older versions wrote it: the base beside the scaling, the kind as `type`.
            let mut older = row.parameters.clone();
            let fields = older.as_object_mut().unwrap();
            let base = fields.remove("rope_theta").unwrap();
            let kind = fields.remove("rope_type").unwrap();
            fields.insert("type".into(), kind);
            let mut whole = config("rope_scaling", &older);
            whole["rope_theta"] = base;
            check(row, &whole);
        }
    }

    #[test]
    fn scalings_that_depend_on_the_length_of_the_input_are_refused() {
        for kind in ["dynamic", "longrope", "su"] {
            let parameters = json!({"rope_type": kind, "factor": 2.0});
            let text = config("rope_parameters", &parameters).to_string();
            let message = (Config::parse(&text).unwrap().decoder().unwrap_err()).to_string();
            let expected =
                format!("rope_parameters.rope_type is \"{kind}\"; supported is: default");
            assert!(message.contains(&expected), "{message}");
        }
        let parameters = json!({"rope_type": "linear"});
        let text = config("rope_parameters", &parameters).to_string();
        let message = (Config::parse(&text).unwrap().decoder().unwrap_err()).to_string();
        assert!(message.contains("rope_parameters.factor"), "{message}");
    }
}
