//! Which parameters weight decay shrinks.

use crate::decoder::Places;
use crate::weights::Layout;
use serde::{Deserialize, Serialize};

/// Which of the trained parameters the optimiser's weight decay applies to
/// (`training.weight_decay_groups` of a task file).
///
/// # Reference
/// `Trainer.get_decay_parameter_names` of transformers 5.23.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WeightDecayGroups {
    /// To all, as PyTorch's optimisers do with one group.
    #[default]
    All,
    /// To all but biases (those of relative positions included) and the parameters of norms, as
    /// transformers' `Trainer` does.
    HuggingFace,
}

impl WeightDecayGroups {
    /// Whether each parameter of the layout is decayed.
    #[cfg_attr(not(feature = "torch"), allow(dead_code))]
    pub(crate) fn decayed(self, layout: &Layout, places: &Places) -> Vec<bool> {
        let specs = layout.specs();
        if self == Self::All {
            return vec![true; specs.len()];
        }
        let mut decayed: Vec<bool> = (specs.iter())
            .map(|spec| !spec.name.contains("bias"))
            .collect();
        for norm in places.norms() {
            decayed[norm.weight] = false;
        }
        decayed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decoder::layout;
    use crate::hugging_face;
    use std::collections::BTreeMap;
    use std::path::Path;

    /// Names by `tests/data/make_steps.py`: those of transformers' `Trainer`.
    #[test]
    fn ref_groups_are_those_of_the_trainer_of_transformers() {
        let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
        let text = std::fs::read_to_string(data.join("decay.json")).unwrap();
        let groups: BTreeMap<String, BTreeMap<String, Vec<String>>> =
            serde_json::from_str(&text).unwrap();
        assert_eq!(groups.len(), 23);
        for (folder, groups) in groups {
            let base = (folder.strip_suffix("_lora"))
                .or(folder.strip_suffix("_ia3"))
                .unwrap_or(&folder);
            let mut weights = hugging_face::load(&data.join(base), None).unwrap();
            if base != folder {
                weights = hugging_face::load_adapter(&weights, &data.join(&folder)).unwrap();
            }
            let (layout, places) = layout(weights.architecture().decoder());
            let trained = weights.architecture().chosen();
            let decayed = WeightDecayGroups::HuggingFace.decayed(&layout, &places);
            for (name, expected) in [("decayed", true), ("others", false)] {
                let mut got: Vec<&str> = (layout.specs().iter().zip(&trained).zip(&decayed))
                    .filter(|((_, is_trained), is)| **is_trained && **is == expected)
                    .map(|((spec, _), _)| spec.name.as_str())
                    .collect();
                got.sort_unstable();
                let mut wanted = groups[name].clone();
                wanted.sort_unstable();
                assert_eq!(got, wanted, "{folder}, {name}");
            }
        }
    }
}
