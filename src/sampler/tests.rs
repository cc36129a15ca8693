//! Samplers against scalar programs that follow the definitions.

use super::*;

impl SplitMix {
    fn below(&mut self, n: u32) -> u32 {
        u32::try_from(self.next() % u64::from(n)).unwrap()
    }
}

fn counts(params: SamplerParams, logits: &[f32], n: u32) -> Vec<u32> {
    let mut sampler = Sampler::new(&params).unwrap();
    let mut counts = vec![0; logits.len()];
    for _ in 0..n {
        counts[sampler.sample(logits, &[]).unwrap() as usize] += 1;
    }
    counts
}

#[test]
fn zero_temperature_takes_the_first_of_the_likeliest() {
    let mut sampler = Sampler::new(&SamplerParams::default()).unwrap();
    assert_eq!(sampler.sample(&[1.0, f32::NAN, 3.0, 3.0], &[]).unwrap(), 2);
    assert_eq!(sampler.sample(&[-0.0, 0.0], &[]).unwrap(), 1, "as Session::top orders them");
    assert!(sampler.sample(&[], &[]).is_err());
    assert!(sampler.sample(&[f32::NAN], &[]).is_err());
}

/// What a sampler is told, and where it chooses.
#[derive(Clone, Debug, Default)]
struct Case {
    params: SamplerParams,
    bias: Vec<(u32, f32)>,
    breakers: Vec<u32>,
    mask: Option<Vec<u32>>,
    logits: Vec<f32>,
    text: Vec<u32>,
}

impl Case {
    /// Logits of `n` tokens, of which some are equal and one is impossible, and a text of the first `n_symbols` of them.
    fn new(params: SamplerParams, n: u32, n_text: usize, n_symbols: u32, random: &mut SplitMix) -> Self {
        // Steps that no penalty makes of one another: whether tokens are equal is then no matter of rounding.
        let mut logits: Vec<f32> = (0..n).map(|_| random.below(41) as f32 * 0.137 - 2.9).collect();
        logits[5] = f32::NEG_INFINITY;
        let text = (0..n_text).map(|_| random.below(n_symbols)).collect();
        Self { params, logits, text, ..Self::default() }
    }

    fn sampler(&self) -> Sampler {
        let mut sampler = Sampler::new(&self.params).unwrap();
        sampler.set_bias(self.bias.iter().copied()).unwrap();
        sampler.set_dry_breakers(&self.breakers).unwrap();
        sampler
    }

    fn place<'a>(&'a self, sampler: &'a mut Sampler) -> Place<'a> {
        let place = sampler.behind(&self.text).unwrap();
        match &self.mask {
            Some(mask) => place.masked(mask),
            None => place,
        }
    }

    fn sample(&self, sampler: &mut Sampler) -> u32 {
        self.place(sampler).sample(&self.logits).unwrap()
    }

    /// The last `n` tokens of the text.
    fn last(&self, n: u32) -> &[u32] {
        &self.text[self.text.len() - self.text.len().min(n as usize)..]
    }

    /// The longest of the repetitions that `token` would go on with, by comparing every earlier place with the end.
    fn repeated(&self, token: u32) -> usize {
        let text = self.last(self.params.dry_last_n);
        let length = |place: usize| {
            let longest = (0..=place).take_while(|&n| {
                let (before, end) = (&text[place - n..place], &text[text.len() - n..]);
                before == end && !end.iter().any(|token| self.breakers.contains(token))
            });
            longest.last().unwrap()
        };
        let places = (0..text.len()).filter(|&place| text[place] == token && !self.breakers.contains(&token));
        places.map(length).max().unwrap_or(0)
    }

    /// The logit of each token before the temperature.
    fn changed(&self, token: u32) -> f64 {
        let SamplerParams { repeat_penalty, frequency_penalty, presence_penalty, .. } = self.params;
        let SamplerParams { dry_multiplier, dry_base, dry_allowed_length, .. } = self.params;
        if let Some(mask) = &self.mask {
            let bits: Vec<u32> =
                mask.iter().flat_map(|word| (0..32).map(move |bit| word >> bit & 1)).collect();
            if bits.get(token as usize) != Some(&1) {
                return f64::NEG_INFINITY;
            }
        }
        let mut logit = f64::from(self.logits[token as usize]);
        logit += self.bias.iter().filter(|pair| pair.0 == token).map(|pair| f64::from(pair.1)).sum::<f64>();
        let n_recent = self.last(self.params.repeat_last_n).iter().filter(|&&other| other == token).count();
        if n_recent > 0 {
            logit = if logit > 0.0 {
                logit / f64::from(repeat_penalty)
            } else {
                logit * f64::from(repeat_penalty)
            };
            logit -= n_recent as f64 * f64::from(frequency_penalty) + f64::from(presence_penalty);
        }
        let n = self.repeated(token);
        if n >= dry_allowed_length as usize {
            let excess = (n - dry_allowed_length as usize) as f64;
            logit -= f64::from(dry_multiplier) * f64::from(dry_base).powf(excess);
        }
        logit
    }

    /// The probability of each token, step by step as the definitions have it.
    fn probabilities(&self) -> Vec<f64> {
        let SamplerParams { temperature, top_k, typical_p, top_p, min_p, .. } = self.params;
        let logits = (0..).take(self.logits.len()).map(|token| self.changed(token));
        let p: Vec<f64> = logits.map(|logit| (logit / f64::from(temperature)).exp()).collect();
        let by = |p: &[f64], key: &dyn Fn(f64) -> f64| {
            let mut order: Vec<usize> = (0..p.len()).collect();
            order.sort_by(|&a, &b| key(p[a]).total_cmp(&key(p[b])));
            order
        };
        let order = by(&p, &|p| -p);
        let top_k = if top_k == 0 { p.len() } else { top_k as usize };
        let p = kept(&p, &order, |_, ahead| ahead.len() < top_k);
        let entropy: f64 = p.iter().filter(|&&p| p > 0.0).map(|p| -p * p.ln()).sum();
        let typical = by(&p, &|p| (-p.ln() - entropy).abs());
        let sum = |p: &[f64], tokens: &[usize]| tokens.iter().map(|&token| p[token]).sum::<f64>();
        let p = kept(&p, &typical, |_, ahead| typical_p == 1.0 || sum(&p, ahead) < f64::from(typical_p));
        let p = kept(&p, &order, |_, ahead| sum(&p, ahead) < f64::from(top_p));
        let highest = p.iter().copied().fold(0.0, f64::max);
        kept(&p, &order, |share, _| share >= f64::from(min_p) * highest)
    }
}

/// What `keep` leaves of `p`, with sum 1; it is told each probability and what is ahead of it in `order`.
fn kept(p: &[f64], order: &[usize], keep: impl Fn(f64, &[usize]) -> bool) -> Vec<f64> {
    let keeps = |token| keep(p[token], &order[..order.iter().position(|&other| other == token).unwrap()]);
    let kept: Vec<f64> = (0..p.len()).map(|token| if keeps(token) { p[token] } else { 0.0 }).collect();
    let total: f64 = kept.iter().sum();
    kept.iter().map(|p| p / total).collect()
}

/// Pearson's statistic of counts, and what it stays below but once in three million times (Wilson and Hilferty, "The
/// Distribution of Chi-Square", 1931). Tokens that are expected less than five times count together.
fn chi_square(counts: &[u32], p: &[f64]) -> (f64, f64) {
    let n: u32 = counts.iter().sum();
    let (mut rare, mut cells) = ((0.0, 0.0), Vec::new());
    for (&count, p) in counts.iter().zip(p) {
        let (count, expected) = (f64::from(count), p * f64::from(n));
        match expected < 5.0 {
            true => rare = (rare.0 + count, rare.1 + expected),
            false => cells.push((count, expected)),
        }
    }
    cells.extend((rare.1 >= 5.0).then_some(rare));
    let statistic = cells.iter().map(|(count, expected)| (count - expected).powi(2) / expected).sum();
    let freedom = cells.len() as f64 - 1.0;
    let spread = 2.0 / (9.0 * freedom.max(1.0));
    (statistic, freedom * (1.0 - spread + 5.0 * spread.sqrt()).powi(3) + 1e-9)
}

/// All combinations of a few values of the parameters that most programs have.
fn combinations() -> impl Iterator<Item = SamplerParams> {
    (0..3u32.pow(5)).map(|n| {
        let digit = |place| n as usize / 3usize.pow(place) % 3;
        SamplerParams {
            temperature: [0.5, 1.0, 1.7][digit(0)],
            top_k: [0, 3, 10][digit(1)],
            top_p: [1.0, 0.9, 0.4][digit(2)],
            min_p: [0.0, 0.03, 0.3][digit(3)],
            repeat_penalty: [1.0, 1.4, 0.7][digit(4)],
            repeat_last_n: n % 20,
            seed: u64::from(n),
            ..Default::default()
        }
    })
}

/// Everything that can be set, each of it in some of the cases. `falls` leaves out what raises logits, and masks.
fn cases(n_cases: u64, n: u32, falls: bool) -> impl Iterator<Item = Case> {
    (0..n_cases).map(move |seed| {
        let mut random = SplitMix(seed);
        let mut of = |values: &[f32]| values[random.below(12) as usize % values.len()];
        let params = SamplerParams {
            temperature: of(&[0.5, 1.0, 1.7]),
            typical_p: of(&[1.0, 0.9, 0.5, 0.2]),
            top_p: of(&[1.0, 1.0, 0.8]),
            min_p: of(&[0.0, 0.1, 0.6]),
            repeat_penalty: of(&[1.0, 1.0, 1.2]),
            frequency_penalty: of(&[0.0, 0.3, if falls { 0.7 } else { -0.2 }]),
            presence_penalty: of(&[0.0, 0.6, if falls { 1.3 } else { -0.4 }]),
            dry_multiplier: of(&[0.0, 0.4, 0.8]),
            dry_base: of(&[1.0, 1.2, 1.75]),
            top_k: random.below(2) * (3 + random.below(12)),
            dry_allowed_length: 1 + random.below(3),
            dry_last_n: [u32::MAX, 30, 7, 0][random.below(4) as usize],
            repeat_last_n: random.below(40),
            seed,
        };
        let (n_text, n_symbols) = (random.below(60) as usize, 1 + random.below(4));
        let mut case = Case::new(params, n, n_text, n_symbols, &mut random);
        let tokens: Vec<u32> = (0..n).filter(|_| random.below(5) == 0).collect();
        let bias =
            |token| (token, [-0.73, f32::NEG_INFINITY, if falls { -2.1 } else { 1.9 }][token as usize % 3]);
        case.bias = if random.below(2) == 0 { tokens.into_iter().map(bias).collect() } else { Vec::new() };
        case.breakers = (0..random.below(3)).map(|_| random.below(5)).collect();
        // Bits behind the vocabulary mean nothing, and words may be missing.
        let mask = vec![random.below(u32::MAX) | 1 << 10; 1 + random.below(2) as usize];
        case.mask = (!falls && random.below(3) == 0).then_some(mask);
        case
    })
}

#[test]
fn frequencies_are_the_probabilities_of_the_definitions() {
    let plain = combinations().map(|params| {
        let mut random = SplitMix(params.seed);
        Case::new(params, 24, 24, 24, &mut random)
    });
    for case in plain.chain(cases(500, 24, false)) {
        let p = case.probabilities();
        let mut sampler = case.sampler();
        let mut counts = vec![0; p.len()];
        for _ in 0..4000 {
            counts[case.sample(&mut sampler) as usize] += 1;
        }
        let impossible = counts.iter().zip(&p).position(|(&count, &p)| count > 0 && p == 0.0);
        assert_eq!(impossible, None, "{case:?}");
        let (statistic, most) = chi_square(&counts, &p);
        assert!(statistic < most, "{case:?}: {statistic} of {most}: {counts:?} {p:?}");
        for pair in sampler.choices().windows(2) {
            assert!(filters::likelier(&pair[0], &pair[1]).is_lt());
        }
        let mut left = vec![0.0; p.len()];
        for choice in sampler.choices() {
            left[choice.token as usize] = f64::from(choice.p);
            let logit = case.changed(choice.token);
            assert!(
                (f64::from(choice.logit) - logit).abs() < 1e-4 * (1.0 + logit.abs()),
                "{case:?} {choice:?}"
            );
        }
        for (left, p) in left.iter().zip(&p) {
            assert!((left - p).abs() < 1e-5, "{case:?}: {left} {p}");
        }
    }
}

#[test]
fn the_likeliest_tokens_choose_what_all_choose() {
    let greedy = [1.0, 1.5, 0.7].map(|repeat_penalty| SamplerParams { repeat_penalty, ..Default::default() });
    let plain = combinations().chain(greedy).flat_map(|params| {
        (0..24).zip([0, 1, 3, 10, 30, 60, 120, 1000].into_iter().cycle()).map(move |(seed, repeat_last_n)| {
            let params = SamplerParams { repeat_last_n, ..params.clone() };
            Case::new(params, 300, 300, 300, &mut SplitMix(seed))
        })
    });
    let without_temperature = cases(500, 300, true).map(|mut case| {
        case.params.temperature = 0.0;
        case
    });
    let (mut n_few, mut n_all) = (0, 0);
    for case in plain.chain(cases(1000, 300, true)).chain(without_temperature) {
        let (mut few, mut all) = (case.sampler(), case.sampler());
        let Some(n) = case.place(&mut few).n_candidates() else {
            n_all += 1;
            continue;
        };
        n_few += 1;
        let candidate = |(token, &logit)| Candidate { token, logit };
        let mut top: Vec<Candidate> = (0..).zip(&case.logits).map(candidate).collect();
        top.sort_by(|a, b| b.logit.total_cmp(&a.logit).then(a.token.cmp(&b.token)));
        top.truncate(n);
        for _ in 0..20 {
            let chosen = case.place(&mut few).sample_from(&top).unwrap();
            assert_eq!(chosen, case.sample(&mut all), "{case:?}");
            assert_eq!(few.choices(), all.choices());
        }
    }
    assert!(n_few > 1000 && n_all > 1000, "{n_few} {n_all}");
}

#[test]
fn what_may_move_up_or_is_masked_needs_all_logits() {
    let params =
        SamplerParams { frequency_penalty: 0.1, dry_multiplier: 1.0, top_k: 5, ..Default::default() };
    let n = |params: &SamplerParams, bias: &[(u32, f32)]| {
        let mut sampler = Sampler::new(params).unwrap();
        sampler.set_bias(bias.iter().copied()).unwrap();
        let n = sampler.behind(&[7, 7, 8]).unwrap().n_candidates();
        assert_eq!(sampler.behind(&[7, 7, 8]).unwrap().masked(&[u32::MAX; 8]).n_candidates(), None);
        n
    };
    assert_eq!(n(&params, &[]), Some(3), "the likeliest, and two tokens that move down");
    assert_eq!(n(&params, &[(7, -1.0), (9, f32::NEG_INFINITY)]), Some(4));
    assert_eq!(n(&params, &[(9, 0.5)]), None);
    let warm = SamplerParams { temperature: 1.0, ..params.clone() };
    assert_eq!(n(&warm, &[]), Some(7));
    assert_eq!(n(&SamplerParams { top_k: 0, ..warm }, &[]), None);
    assert_eq!(n(&SamplerParams { presence_penalty: -0.1, ..params.clone() }, &[]), None);
    assert_eq!(n(&SamplerParams { frequency_penalty: -0.1, ..params }, &[]), None);
}

#[test]
fn repetitions_are_those_of_every_earlier_place() {
    let mut random = SplitMix(9);
    let mut longest = 0;
    for _ in 0..3000 {
        let (n_text, n_symbols) = (random.below(50) as usize, 1 + random.below(4));
        let params = SamplerParams {
            dry_multiplier: 1.0,
            dry_allowed_length: 1 + random.below(3),
            dry_last_n: [u32::MAX, random.below(50)][random.below(2) as usize],
            ..Default::default()
        };
        let mut case = Case::new(params, 6, n_text, n_symbols, &mut random);
        case.breakers = (0..random.below(3)).map(|_| random.below(8)).collect();
        let mut sampler = case.sampler();
        sampler.behind(&case.text).unwrap();
        let longest_of = |token| {
            let lengths =
                sampler.repeats.found().iter().filter(|(other, _)| *other == token).map(|(_, n)| *n);
            lengths.max().unwrap_or(0)
        };
        for token in 0..n_symbols {
            let n = case.repeated(token);
            let counts = n >= case.params.dry_allowed_length as usize;
            assert_eq!(longest_of(token), if counts { n } else { 0 }, "{case:?} {token}");
            longest = longest.max(n);
        }
    }
    assert!(longest > 30);
}

#[test]
fn a_repetition_of_any_length_leaves_the_only_token_possible() {
    let params = SamplerParams { dry_multiplier: 1.0, temperature: 1.0, ..Default::default() };
    let mut sampler = Sampler::new(&params).unwrap();
    let text = vec![3; 200_000];
    assert_eq!(sampler.behind(&text).unwrap().masked(&[8]).sample(&[1.0; 9]).unwrap(), 3);
    assert_eq!(sampler.choices()[0].p, 1.0);
    assert_ne!(sampler.sample(&[1.0; 9], &text).unwrap(), 3);
    sampler.set_dry_breakers(&[3]).unwrap();
    let mut counts = [0; 2];
    (0..100).for_each(|_| counts[sampler.sample(&[1.0; 2], &text[..9]).unwrap() as usize] += 1);
    assert!(counts[0] > 20 && counts[1] > 20, "a breaker repeats nothing: {counts:?}");
}

#[test]
fn what_is_forbidden_is_never_chosen() {
    for temperature in [0.0, 1.0] {
        let mut sampler = Sampler::new(&SamplerParams { temperature, ..Default::default() }).unwrap();
        let logits = [1.0, f32::NEG_INFINITY, 2.0, f32::NAN];
        sampler.set_bias([(2, f32::NEG_INFINITY), (900, 1.0)].into_iter()).unwrap();
        assert_eq!(sampler.sample(&logits, &[]).unwrap(), 0);
        assert_eq!(sampler.choices().len(), 1);
        for mask in [&[0b1110][..], &[0, 1], &[]] {
            let error = sampler.behind(&[]).unwrap().masked(mask).sample(&logits).unwrap_err();
            assert!(error.to_string().starts_with("no token to choose"), "{error}");
            assert!(sampler.choices().is_empty());
        }
        sampler.set_bias([].into_iter()).unwrap();
        assert_eq!(sampler.behind(&[]).unwrap().masked(&[0b1110]).sample(&logits).unwrap(), 2);
        // Beside an infinite logit there is nothing.
        assert_eq!(sampler.sample(&[9.0, f32::INFINITY, 0.0], &[]).unwrap(), 1);
        assert_eq!(sampler.choices(), [Choice { token: 1, logit: f32::INFINITY, p: 1.0 }]);
    }
}

#[test]
fn a_reset_begins_again_and_keeps_biases() {
    let params = SamplerParams { temperature: 1.0, seed: 8, ..Default::default() };
    let mut sampler = Sampler::new(&params).unwrap();
    sampler.set_bias([(2, f32::NEG_INFINITY)].into_iter()).unwrap();
    let mut text = || -> Vec<u32> { (0..50).map(|_| sampler.sample(&[1.0; 5], &[]).unwrap()).collect() };
    let first = text();
    assert_ne!(text(), first);
    sampler.reset();
    assert!(sampler.choices().is_empty());
    let again: Vec<u32> = (0..50).map(|_| sampler.sample(&[1.0; 5], &[]).unwrap()).collect();
    assert!(again == first && !again.contains(&2));
}

#[test]
fn biases_that_make_no_sense_are_refused_and_change_nothing() {
    let mut sampler = Sampler::new(&SamplerParams::default()).unwrap();
    sampler.set_bias([(1, 9.0)].into_iter()).unwrap();
    for (bias, message) in [
        ([(3, f32::NAN), (4, 0.0)], "bias NaN of token 3 is neither"),
        ([(3, 0.0), (4, f32::INFINITY)], "bias inf of token 4 is neither"),
        ([(3, 0.0), (3, 1.0)], "token 3 has more than one bias"),
    ] {
        let error = sampler.set_bias(bias.into_iter()).unwrap_err().to_string();
        assert!(error.starts_with(message), "{error}");
        assert_eq!(sampler.sample(&[5.0, 0.0, 5.0], &[]).unwrap(), 1);
    }
}

#[test]
fn a_penalty_works_without_a_temperature_and_only_on_recent_tokens() {
    let logits = [4.0f32, 3.0, -1.0];
    let of = |repeat_penalty, repeat_last_n, text: &[u32]| {
        let params = SamplerParams { repeat_penalty, repeat_last_n, ..Default::default() };
        Sampler::new(&params).unwrap().sample(&logits, text).unwrap()
    };
    assert_eq!([of(1.3, 64, &[0]), of(1.4, 64, &[0]), of(1.4, 64, &[0, 1])], [0, 1, 0]);
    // Once, however often a token occurs.
    assert_eq!(of(1.3, 64, &[0, 0, 0]), 0);
    assert_eq!([of(1.4, 2, &[0, 2, 2]), of(1.4, 3, &[0, 2, 2]), of(1.4, u32::MAX, &[0, 2, 2])], [0, 1, 1]);
    assert_eq!(of(1.4, 0, &[0]), 0);
    // A negative logit goes down, too.
    assert_eq!(of(100.0, 64, &[0, 1, 2]), 0);
    assert_eq!(of(0.5, 64, &[1]), 1);
}

#[test]
fn top_k_and_top_p_leave_only_the_likeliest() {
    let logits = [0.1f32, 3.0, 2.9, 0.2, 2.8];
    let of = |top_k, top_p| {
        let params = SamplerParams { temperature: 1.0, top_k, top_p, seed: 1, ..Default::default() };
        counts(params, &logits, 2000)
    };
    let top_2 = of(2, 1.0);
    assert!(top_2[1] > 0 && top_2[2] > 0 && top_2[0] + top_2[3] + top_2[4] == 0);
    let half = of(0, 0.6);
    assert!(half[1] > 0 && half[2] > 0 && half[0] + half[3] + half[4] == 0, "{half:?}");
    assert_eq!(of(0, 1e-6)[1], 2000);
}

#[test]
fn the_same_seed_gives_the_same_tokens() {
    let logits: Vec<f32> = (0..100).map(|i| (i as f32 * 0.7).sin()).collect();
    let of = |seed| counts(SamplerParams { temperature: 1.0, seed, ..Default::default() }, &logits, 50);
    assert_eq!(of(3), of(3));
    assert_ne!(of(3), of(4));
}

#[test]
fn parameters_out_of_range_are_refused() {
    type Change = fn(&mut SamplerParams, f32);
    let with = |change: Change, value| {
        let mut params = SamplerParams::default();
        change(&mut params, value);
        Sampler::new(&params).map(|_| ()).map_err(|error| error.to_string())
    };
    let cases: [(&str, Change, &[f32]); 9] = [
        ("temperature", |params, value| params.temperature = value, &[-1.0]),
        ("typical-p", |params, value| params.typical_p = value, &[-0.5, 0.0, 1.1]),
        ("top-p", |params, value| params.top_p = value, &[-0.5, 0.0, 1.1]),
        ("min-p", |params, value| params.min_p = value, &[-0.5, 1.1]),
        ("repeat penalty", |params, value| params.repeat_penalty = value, &[-1.0, 0.0]),
        ("frequency penalty", |params, value| params.frequency_penalty = value, &[]),
        ("presence penalty", |params, value| params.presence_penalty = value, &[]),
        ("dry multiplier", |params, value| params.dry_multiplier = value, &[-1.0]),
        ("dry base", |params, value| params.dry_base = value, &[-1.0, 0.0, 0.9]),
    ];
    for (name, change, values) in cases {
        for &value in values.iter().chain(&[f32::NAN, f32::INFINITY]) {
            let error = with(change, value).unwrap_err();
            assert!(error.starts_with(&format!("{name} {value} is not")), "{error}");
        }
        assert!(with(change, 1.0).is_ok());
    }
}

/// Of as many tokens as large vocabularies have, sums of 32 bits lose some.
#[test]
fn the_tail_of_a_large_vocabulary_is_as_likely_as_it_should_be() {
    let mut random = SplitMix(8);
    // About a normal distribution.
    let logits: Vec<f32> =
        (0..128_256).map(|_| (0..6).map(|_| random.below(1000) as f32 / 1000.0).sum::<f32>() - 3.0).collect();
    let mut sampler = Sampler::new(&SamplerParams { temperature: 1.0, ..Default::default() }).unwrap();
    let total: f64 = logits.iter().map(|&logit| f64::from(logit).exp()).sum();
    for _ in 0..20 {
        let token = sampler.sample(&logits, &[]).unwrap();
        let choices = sampler.choices();
        let sum: f64 = choices.iter().map(|choice| f64::from(choice.p)).sum();
        assert!((sum - 1.0).abs() < 1e-6, "{sum}");
        for choice in choices.iter().step_by(997) {
            let expected = f64::from(logits[choice.token as usize]).exp() / total;
            assert!((f64::from(choice.p) / expected - 1.0).abs() < 1e-5, "{choice:?}: {expected}");
        }
        // What rounding would leave over.
        assert_ne!(Some(token), choices.last().map(|choice| choice.token));
    }
}

#[test]
fn no_penalty_forbids_the_only_token_that_is_left() {
    let params = SamplerParams {
        frequency_penalty: f32::MAX,
        presence_penalty: f32::MAX,
        dry_multiplier: f32::MAX,
        repeat_penalty: f32::MAX,
        ..Default::default()
    };
    for temperature in [0.0, 1.0] {
        let mut sampler = Sampler::new(&SamplerParams { temperature, ..params.clone() }).unwrap();
        let text = [1, 0, 1, 0, 1, 0, 1];
        let place = sampler.behind(&text).unwrap().masked(&[1]);
        assert_eq!(place.sample(&[-4.0, 3.0]).unwrap(), 0);
    }
}
