//! What is asked for: request types, each as often as its weight says.

use std::str::FromStr;

use crate::wire::client::is_type_name;

/// A request type and its weight: `TYPE` or `TYPE=WEIGHT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// The type.
    pub kind: String,
    /// How often it is asked for, beside the weights of the others.
    pub weight: u32,
}

impl FromStr for Share {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, weight) = text.split_once('=').unwrap_or((text, "1"));
        if !is_type_name(kind) {
            return Err(format!("{kind:?} is no request type: 1 to 64 of A-Z a-z 0-9 _ . -"));
        }
        match weight.parse() {
            Ok(weight @ 1..=1_000_000) => Ok(Self { kind: kind.to_owned(), weight }),
            Ok(_) | Err(_) => Err(format!("{weight:?} is no weight: a whole number from 1 to 1000000")),
        }
    }
}

/// Deals out types in proportion to their weights, as evenly as can be: a type of weight 1 beside one of
/// weight 3 comes at every fourth turn (smooth weighted round-robin).
#[derive(Clone, Debug)]
pub struct Mix {
    weights: Vec<i64>,
    credit: Vec<i64>,
}

impl Mix {
    /// A mix of these; the first begins.
    #[must_use]
    pub fn new(shares: &[Share]) -> Self {
        let weights: Vec<i64> = shares.iter().map(|share| i64::from(share.weight)).collect();
        Self { credit: vec![0; weights.len()], weights }
    }

    /// The next type, by its place among the shares.
    pub fn deal(&mut self) -> usize {
        let total: i64 = self.weights.iter().sum();
        let mut best = 0;
        for (place, weight) in self.weights.iter().enumerate() {
            self.credit[place] += weight;
            if self.credit[place] > self.credit[best] {
                best = place;
            }
        }
        self.credit[best] -= total;
        best
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_type_comes_as_often_as_its_weight_says_and_in_between_the_others() {
        let shares: Vec<Share> = ["a=5", "b", "c=2"].iter().map(|text| text.parse().unwrap()).collect();
        let mut mix = Mix::new(&shares);
        let dealt: Vec<usize> = (0..800).map(|_| mix.deal()).collect();
        let count = |kind| dealt.iter().filter(|&&dealt| dealt == kind).count();
        assert_eq!([count(0), count(1), count(2)], [500, 100, 200]);
        assert!(
            dealt.windows(4).all(|four| four.iter().any(|&kind| kind != 0)),
            "never four of one in a row"
        );
    }

    #[test]
    fn what_is_no_share_is_named() {
        assert_eq!("echo=7".parse(), Ok(Share { kind: "echo".to_owned(), weight: 7 }));
        for (text, named) in
            [("", "\"\""), ("a b", "a b"), ("echo=0", "\"0\""), ("echo=x", "\"x\""), ("suivi", "suivi")]
        {
            let error = text.parse::<Share>().unwrap_err();
            assert!(error.contains(named), "{text}: {error}");
        }
    }
}
