//! Scores by target token: the same methods, every token of an answer on its own.

use super::scoring::Scoring;
use crate::cli::AttributionMethod as Method;
use anyhow::{Result, bail};
use simfluence_core::{TargetToken, TokenScores};
use simfluence_models::TokenizedExample;
use simfluence_simulators::graddot::GradDot;
use simfluence_simulators::hif::Hif;
use simfluence_simulators::tracin::TracinCp;

impl Scoring<'_> {
    /// The scores by target token that are asked for, with the tokens named.
    pub(super) fn token_scores(&self) -> Result<TokenScores> {
        let test_tokens = self.settings().test_tokens;
        let mut scores = match self.request.method {
            Method::Graddot | Method::GraddotPreconditioned => {
                let model = self.last_model()?;
                let metric = self.last_metric()?;
                let of = self.of(&model);
                GradDot::new(self.params)?.token_scores(&of, &metric, test_tokens, self.progress)?
            }
            Method::TracinCp | Method::TracinCpPreconditioned => {
                let mut preconditioners = self.preconditioners()?;
                let checkpoints = self.opened_checkpoints(&mut preconditioners)?;
                TracinCp::new(self.params)?.token_scores(
                    checkpoints,
                    &self.train,
                    &self.test,
                    &self.axes,
                    test_tokens,
                    self.progress,
                )?
            }
            Method::HifEkfac | Method::HifKfac | Method::HifDiagonal => {
                let model = self.last_model()?;
                let exposures = self.exposures();
                let steps = self.reference.curriculum.len();
                let method = Hif::new(self.hif_params())?;
                let of = self.of(&model);
                method.token_scores(&of, &exposures, steps, test_tokens, self.progress)?
            }
            _ => bail!("the method gives no scores by target token"),
        };
        self.name(&mut scores.rows, &self.train);
        if let Some(columns) = &mut scores.columns {
            self.name(columns, &self.test);
        }
        Ok(scores)
    }

    /// Fills in the tokens' numbers and texts.
    fn name(&self, tokens: &mut [TargetToken], examples: &[TokenizedExample]) {
        for token in tokens {
            let example = &examples[token.example as usize];
            let at = (example.targets().nth(token.position as usize)).expect("a token with loss");
            let id = example.tokens[at];
            token.id = Some(id);
            token.text = Some(self.reading.text_of(&self.tokenizer, example, at));
        }
    }
}
