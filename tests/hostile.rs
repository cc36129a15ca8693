//! Chat templates from hostile files: whatever they do, they end soon with a text or an error, on a small stack.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use longgen::text::{ChatTemplate, Message};
use proptest::prelude::*;

/// As small as a host's threads may be.
const STACK_BYTES: usize = 512 << 10;

/// Calls on a thread of that stack.
fn on_small_stack<T: Send>(call: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(STACK_BYTES).spawn_scoped(scope, call).unwrap();
        thread.join().unwrap()
    })
}

fn message(role: &str, content: &str) -> Message {
    Message { role: role.into(), content: content.into() }
}

fn render(source: &str, messages: &[Message]) -> longgen::Result<String> {
    ChatTemplate::new(source, &[])?.render(messages, true)
}

fn repeated(start: &str, part: &str, middle: &str, other: &str, n: usize) -> String {
    format!("{start}{}{middle}{}", part.repeat(n), other.repeat(n))
}

/// Values that are large as a text or to walk through, and small in memory.
const VALUES: [(&str, &str); 10] = [
    ("[1]", "[ns.x, ns.x]"),
    ("[1]", "[ns.x]"),
    ("{'a': 1}", "{'a': ns.x, 'b': ns.x}"),
    ("(1,)", "(ns.x, ns.x)"),
    ("[1]", "ns.x + ns.x"),
    ("[1]", "ns.x + [ns.x]"),
    ("[1]", "ns.x * 9"),
    ("'ab'", "ns.x ~ ns.x"),
    ("[1]", "dict(a=ns.x, b=[ns.x]).items()"),
    ("[{'a': 1}]", "ns.x|map('list')|list + [{'a': ns.x}]"),
];

/// What can be done with them.
const USES: [&str; 40] = [
    "{{ ns.x }}",
    "{{ ns.x ~ 'a' }}",
    "{{ ns.x|string|length }}",
    "{{ ns.x|pprint|length }}",
    "{{ ns.x|tojson|length }}",
    "{{ ns.x|join(',')|length }}",
    "{{ ','.join(ns.x|map('string')) }}",
    "{{ '{}'.format(ns.x)|length }}",
    "{{ '%s'|format(ns.x)|length }}",
    "{{ ns.x == ns.y }}",
    "{{ ns.x < ns.y }}",
    "{{ 1 < ns.x < ns.y }}",
    "{{ ns.x in [ns.y, ns.y] }}",
    "{{ ns.x is eq(ns.y) }}",
    "{{ [ns.x, ns.y]|unique|length }}",
    "{{ [ns.x, ns.y]|sort|length }}",
    "{{ [ns.x, ns.y]|min == 1 }}",
    "{{ [ns.x, ns.y]|groupby('a')|length }}",
    "{{ [ns.x, ns.y].count(ns.x) }}",
    "{{ {ns.x: 1}|length }}",
    "{{ {'a': 1}[ns.x] }}",
    "{{ {'a': 1}.get(ns.x) }}",
    "{{ ns.x|select('eq', ns.y)|list|length }}",
    "{{ ns.x|map('string')|list|length }}",
    "{{ ns.x|upper|length }}",
    "{{ ns.x|replace('a', 'b')|length }}",
    "{{ ns.x|indent|length }}",
    "{{ [ns.x, ns.y]|sum(start=[])|length }}",
    "{{ ns.x[::-1]|length }}",
    "{{ ns.x|reverse|list|length }}",
    "{{ [1]|selectattr(ns.x)|list|length }}",
    "{{ [{}]|map(attribute=ns.x)|list|length }}",
    "{{ {}|attr(ns.x) }}",
    "{{ {ns.x: 1}|tojson|length }}",
    "{{ dict({ns.x: 1})|length }}",
    "{{ ('{0}' * 999).format(ns.x)|length }}",
    "{{ ns.x|batch(2)|list|length }}",
    "{{ namespace(x=ns.x)|string|length }}",
    "{% for a in [1, 2] %}{{ loop.changed(ns.x) }}{% endfor %}",
    "{% for a, b in ns.x %}{{ a }}{% endfor %}",
];

#[test]
fn values_that_hold_others_often_or_deep_are_harmless() {
    on_small_stack(|| {
        for n in [30, 20_000] {
            for (start, step) in VALUES {
                for use_of_it in USES {
                    let source = format!(
                        "{{% set ns = namespace(x={start}, y={start}) %}}{{% for i in range({n}) %}}\
                         {{% set ns.x = {step} %}}{{% endfor %}}{{% set ns.y = ns.x + [] if ns.x is not string %}}{use_of_it}"
                    );
                    // It ends: that is all.
                    let _ = render(&source, &[]);
                }
            }
        }
    });
}

/// Each fails, or makes a text of at most a few bytes.
#[test]
fn hostile_templates_end_soon() {
    let long = "{% set ns = namespace(s='x' * 8000000, l=range(90000)|list, d={}) %}";
    let each = |body: &str| format!("{long}{{% for i in ns.l %}}{body}{{% endfor %}}");
    let templates = [
        // Namespaces and loops that hold themselves.
        "{% set ns = namespace() %}{% set ns.x = ns %}{{ ns }}".into(),
        "{% set ns = namespace() %}{% set ns.x = [ns] %}{{ ns }}".into(),
        "{% set a = namespace() %}{% set b = namespace(a=a) %}{% set a.b = b %}{{ a }}".into(),
        "{% set ns = namespace() %}{% set ns.x = {'a': (ns,)} %}{{ ns == ns }}".into(),
        "{% for i in [1, 2] %}{{ loop.changed(loop) }}{% endfor %}".into(),
        "{% for i in [1, 2] %}{{ loop.changed([loop]) }}{% endfor %}".into(),
        "{% set ns = namespace(k=0) %}{% for i in range(50000) %}{% set ns.k = loop.cycle(a=ns.k) %}{% endfor %}".into(),
        "{% set ns = namespace(k=1) %}{% for i in range(9999) %}{% set ns.k = dict(a=ns.k) %}{% endfor %}".into(),
        "{% set ns = namespace(k=[]) %}{% for i in range(9999) %}{% set ns.k = ns.k + [ns.k] %}{% endfor %}".into(),
        "{% set ns = namespace(k=[1]) %}{% for i in range(50000) %}{% set ns.k = ns.k[:] %}{% endfor %}{{ ns.k }}".into(),
        "{% set ns = namespace(k=[1]) %}{% for i in range(50000) %}{% set ns.k = ns.k|reverse %}{% endfor %}{{ ns.k }}".into(),
        "{% set ns = namespace(k={}) %}{% for i in range(9999) %}{% set ns.k = ns.k.items() %}{% endfor %}".into(),
        // Many items.
        "{{ ([1] * 100000000)|length }}".into(),
        "{{ ([1] * 100000000)[99999999:] }}".into(),
        "{{ range(1000000000)|length }}".into(),
        "{{ ('x' * 100000000)|length }}".into(),
        "{{ ('x' * 99999999)|list|length }}".into(),
        "{{ range(9, -9223372036854775807, -9223372036854775807)|list|length }}".into(),
        "{{ (1,) * 100000000 }}".into(),
        "{{ [1]|batch(99999999999, 1)|list }}".into(),
        "{{ [1]|slice(99999999999)|list }}".into(),
        "{{ range(99999)|list|batch(1)|sum(start=[])|length }}".into(),
        "{{ range(300)|map('string')|list|join('x' * 9999999) }}".into(),
        "{{ ('a' * 4000000).split('a')|length }}".into(),
        "{{ ('\\n' * 8000000).splitlines()|length }}".into(),
        "{{ ('a' * 4000000)|split('a')|length }}".into(),
        // Wide texts.
        "{{ 'x'|indent(99999999999) }}".into(),
        "{{ '{:>99999999999}'.format(1) }}".into(),
        "{{ '{:.99999999999f}'.format(1.5) }}".into(),
        "{{ ('{:99999}' * 99999).format(1) }}".into(),
        "{{ '%99999999999s'|format(1) }}".into(),
        "{{ '%*s'|format(99999999999, 1) }}".into(),
        "{{ ('x' * 9999)|replace('x', 'y' * 999999) }}".into(),
        "{{ ('x' * 9999).replace('', 'y' * 999999) }}".into(),
        "{{ 1|tojson(indent=99999999999) }}".into(),
        "{{ 1.5|round(99999) }}".into(),
        "{{ 9 ** 9999999999 }}{{ 2.0 ** 99999999 }}".into(),
        "{{ strftime_now('%c' * 999999) }}".into(),
        "{{ raise_exception([1] * 9999999) }}".into(),
        "{{ debug() }}".into(),
        "{{ ('{0}' * 99999).format(range(9999)|list) }}".into(),
        "{{ ('%(a)s' * 99999)|format(a=range(9999)|list) }}".into(),
        "{% autoescape true %}{{ '<' * 8000000 }}{% endautoescape %}".into(),
        "{{ ('<' * 8000000)|e|length }}".into(),
        "{{ raise_exception('x' * 8000000) }}".into(),
        // Long texts, looked at often.
        each("{% if ns.s[7999999] == 1 %}{% endif %}"),
        each("{% if ns.s[-1] == 1 %}{% endif %}"),
        each("{% if ns.s[:1] == 1 %}{% endif %}"),
        each("{% if ns.s == ns.s ~ '' %}{% endif %}"),
        each("{% if ns.s < ns.s %}{% endif %}"),
        each("{% if 0 < ns.s < ns.s %}{% endif %}"),
        each("{% if ns.s is lower %}{% endif %}"),
        each("{% if ns.s is startingwith(ns.s) %}{% endif %}"),
        each("{% if ns.s is sameas(ns.s) %}{% endif %}"),
        each("{% if ns.s in ns.l %}{% endif %}"),
        each("{% if ns.s in [ns.s] %}{% endif %}"),
        each("{% if ns.d[ns.s] %}{% endif %}"),
        each("{% if ns.d.get(ns.s) %}{% endif %}"),
        each("{% if {ns.s: 1} %}{% endif %}"),
        each("{% for c in ns.s %}{% break %}{% endfor %}"),
        each("{% if ns.s|length %}{% endif %}"),
        each("{% if loop.changed(ns.s) %}{% endif %}"),
        each("{% if ([ns.s] * 99)|sort %}{% endif %}"),
        each("{% if ns.l|map(attribute=ns.s)|list %}{% endif %}"),
        each("{% if ns.l.count(ns.s) %}{% endif %}"),
        each("{% if dict(**{'a': 1}) %}{% endif %}{% if dict(ns.d, a=ns.l)|length %}{% endif %}"),
        "{{ ('x' * 4000000 ~ 'y')|trim('z' * 1000000 ~ 'x') }}".into(),
        "{{ ('x' * 4000000 ~ 'y').strip('z' * 1000000 ~ 'x') }}".into(),
        "{% for c in ['a'] recursive %}{{ loop('x' * 9) }}{% endfor %}".into(),
        // Calls that call themselves.
        format!("{{{{ 'a'|map({})|list }}}}", ["'map'"; 2000].join(",")),
        format!("{{{{ 'a'|map({})|list }}}}", ["'map'"; 14].join(",")),
        "{{ 'a'|map(*(['map'] * 60000))|list }}".into(),
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}".into(),
        "{% macro f() %}{{ caller() }}{% endmacro %}{% macro g() %}{% call f() %}{{ g() }}{% endcall %}{% endmacro %}{{ g() }}".into(),
        "{% block a %}{{ self.a() }}{% endblock %}".into(),
        "{% for i in [1] recursive %}{{ loop([1]) }}{% endfor %}".into(),
        "{% include 'chat template' %}".into(),
        "{% extends 'chat template' %}".into(),
        "{% import 'chat template' as m %}".into(),
        // Sources that the compiler recurses on.
        repeated("{{ a", ".a", "", " }}", 1) + &repeated("{{ a", ".a", " }}", "", 100_000),
        repeated("{{ 1", " + x", " }}", "", 100_000),
        repeated("{{ 1", "|abs", " }}", "", 100_000),
        repeated("{{ a", "[1]", " }}", "", 100_000),
        repeated("{{ a", "(1)", " }}", "", 100_000),
        repeated("{{ a", " is string", " }}", "", 100_000),
        repeated("{{ a", " if b", " }}", "", 100_000),
        repeated("{{ ", "a if b else ", "c }}", "", 100_000),
        repeated("{{ ", "not ", "x }}", "", 100_000),
        repeated("{{ ", "-", "x }}", "", 100_000),
        repeated("{{ ", "(", "x", ")", 100_000),
        repeated("{{ ", "[", "x", "]", 100_000),
        repeated("{{ ", "{1:", "x", "}", 100_000),
        repeated("{% if a %}", "{% elif a %}", "{% endif %}", "", 100_000),
        repeated("", "{% if a %}", "", "{% endif %}", 100_000),
        repeated("", "{% for a in b %}", "", "{% endfor %}", 100_000),
        repeated("{% set a", ".b", " = 1 %}", "", 100_000),
        repeated("{% filter upper", "|lower", " %}{% endfilter %}", "", 100_000),
        (0..5000).map(|i| format!("{{% block b{i} %}}{{% endblock %}}")).collect(),
        format!("{{{{ {} }}}}", "a".repeat(1 << 20)),
        format!("{{{{ {{ {} }} }}}}", "x: 1, ".repeat(40_000)),
    ];
    on_small_stack(|| {
        for source in &templates {
            if let Ok(text) = render(source, &[]) {
                let source: String = source.chars().take(100).collect();
                assert!(text.len() < 10_000_000, "{source}: {} bytes", text.len());
            }
        }
    });
}

#[test]
fn what_a_namespace_cannot_hold_is_said() {
    for (source, part) in [
        ("{% set ns = namespace() %}{% set ns.x = ns %}", "cannot hold a namespace"),
        ("{% set ns = namespace() %}{{ [ns] }}", "cannot hold a namespace"),
        ("{% for i in [1] %}{{ [loop] }}{% endfor %}", "cannot hold a namespace or a loop"),
        (
            "{% set ns = namespace(x=1) %}{% for i in range(200) %}{% set ns.x = [ns.x] %}{% endfor %}",
            "more than 100 deep",
        ),
        ("{% set x = [] %}{% set x.a = 1 %}", "can only assign to namespaces, not sequence"),
        ("{% include 'x' %}", "x"),
    ] {
        let error = render(source, &[]).unwrap_err().to_string();
        assert!(error.contains(part) && error.contains("line 1"), "{source}: {error}");
    }
}

/// Real templates gather messages so, in lists that are then looked at as any other.
#[test]
fn ten_thousand_messages_are_gathered_in_a_list() {
    let messages: Vec<Message> =
        (0..10_000).map(|i| message(if i % 2 == 0 { "user" } else { "assistant" }, &i.to_string())).collect();
    for step in [
        "ns.all + [m]",
        "ns.all + (messages[loop.index0:loop.index])",
        "ns.all + [{'role': m.role, 'content': m.content}]",
    ] {
        let source = format!(
            "{{% set ns = namespace(all=[]) %}}{{% for m in messages %}}{{% set ns.all = {step} %}}{{% endfor %}}\
             {{% for m in ns.all %}}{{{{ m.role ~ m['content'] }}}}{{{{ '.' if loop.last else ',' }}}}{{% endfor %}}"
        );
        let expected: Vec<String> = messages.iter().map(|m| m.role.clone() + &m.content).collect();
        assert_eq!(render(&source, &messages).unwrap(), expected.join(",") + ".");
    }
}

/// A list that has grown by `+`, and is a part of a longer one, is what the engine's own list is.
#[test]
fn lists_look_the_same_however_they_were_made() {
    let made = [
        "[3, 'b', none, [2]]",
        "[3] + ['b'] + [none] + [[2]]",
        "([1, 3, 'b', none, [2], 5] + [6])[1:5]",
        "[3, 'b', none, [2], 9][:-1]",
        "(3, 'b', none, [2])|list",
        "[[2], none, 'b', 3]|reverse|list",
        "([3, 'b'] * 2)[:2] + [none, [2]]",
    ];
    let looks = "{{ x }}{{ x|length }}{{ x[0] }}{{ x[-1] }}{{ x[9] }}{{ x[1:3] }}{{ x[::-2] }}{{ x[-2:] }}{{ x[5:1] }}\
        {{ x is sequence }}{{ x is iterable }}{{ x is mapping }}{{ x is string }}{{ x|tojson }}{{ x == [3, 'b', none, [2]] }}\
        {{ [3, 'b', none, [2]] == x }}{{ x < [4] }}{{ x != [3] }}{{ 'b' in x }}{{ [2] in x }}{{ 7 in x }}{{ x.count(3) }}\
        {{ x|first }}{{ x|last }}{{ x|join('-') }}{{ x|map('string')|list }}{{ x|select('string')|list }}{{ x|string }}\
        {{ x ~ '' }}{{ x + x }}{{ x * 2 }}{{ x|reverse|list }}{{ x|batch(3)|list }}{{ '{}'.format(x) }}{{ x|default(1) }}\
        {{ 'y' if x else 'n' }}{{ x[:0] }}{{ 'y' if x[:0] else 'n' }}{{ x|unique|list }}{{ {'k': x} }}{{ (x, 1) }}\
        {% for i in x %}{{ loop.index }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.previtem }}{{ i }}{% endfor %}\
        {% for i in x if i %}{{ loop.length }}{% endfor %}{% set a, b, c, d = x %}{{ b }}{{ dict(k=x).items()|list }}";
    let texts: Vec<String> =
        made.iter().map(|made| render(&format!("{{% set x = {made} %}}{looks}"), &[]).unwrap()).collect();
    for (made, text) in made.iter().zip(&texts) {
        assert_eq!(text, &texts[0], "{made}");
    }
}

/// Two lists that grow from one do not see what the other gets.
#[test]
fn lists_that_share_their_beginning_stay_apart() {
    let source = "{% set a = [1] + [2] %}{% set b = a + [3] %}{% set c = a + [4] %}{% set d = b + [5] %}{% set e = b[:1] + [6] %}\
        {{ a }}{{ b }}{{ c }}{{ d }}{{ e }}{{ b }}{% set f = a + a %}{% set g = f + [f] %}{{ f }}{{ g }}";
    let expected =
        "[1, 2][1, 2, 3][1, 2, 4][1, 2, 3, 5][1, 6][1, 2, 3][1, 2, 1, 2][1, 2, 1, 2, [1, 2, 1, 2]]";
    assert_eq!(render(source, &[]).unwrap(), expected);
}

fn expression() -> impl Strategy<Value = String> {
    let leaf = prop::sample::select(vec![
        "ns", "ns.x", "ns.y", "loop", "m", "messages", "1", "-2", "'ab'", "none", "[]", "{}", "range(9)",
        "x", "true", "(1,)",
    ]);
    leaf.prop_map(str::to_owned).prop_recursive(4, 24, 3, |inner| {
        let binary = prop::sample::select(vec![
            "+", "*", "~", "==", "<", ">=", "in", "not in", "and", "or", "-", "/", "%", "//", "**", "!=",
            "< 3 <",
        ]);
        let filter = prop::sample::select(vec![
            "list",
            "length",
            "string",
            "sort",
            "unique",
            "join(',')",
            "map('string')",
            "map('list')",
            "reverse",
            "first",
            "last",
            "tojson",
            "items",
            "dictsort",
            "sum",
            "sum(start=[])",
            "batch(2)",
            "slice(2)",
            "min",
            "max",
            "pprint",
            "select",
            "reject('none')",
            "selectattr('x')",
            "map(attribute='x')",
            "groupby('x')",
            "indent",
            "replace('a', 'bb')",
            "upper",
            "trim",
            "default(ns.x)",
            "split",
            "float(1)",
            "format(1)",
            "attr('x')",
            "round",
            "int(2)",
        ]);
        let method = prop::sample::select(vec![
            "items()",
            "keys()",
            "values()",
            "get('x')",
            "split('a')",
            "join(ns.x)",
            "format(ns.y)",
            "strip()",
            "count(ns.x)",
            "x",
            "cycle(1, ns.x)",
            "changed(ns.x)",
            "replace('a', 'aa')",
            "splitlines()",
            "startswith('a')",
        ]);
        prop_oneof![
            (inner.clone(), binary, inner.clone()).prop_map(|(a, op, b)| format!("({a} {op} {b})")),
            (inner.clone(), filter).prop_map(|(a, filter)| format!("({a}|{filter})")),
            (inner.clone(), method).prop_map(|(a, method)| format!("({a}).{method}")),
            prop::collection::vec(inner.clone(), 0..4).prop_map(|items| format!("[{}]", items.join(", "))),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("{{'x': {a}, 'y': {b}}}")),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("({a}, {b})")),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("({a})[{b}]")),
            (inner.clone(), inner.clone(), inner.clone()).prop_map(|(a, b, c)| format!("({a})[{b}:{c}]")),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("dict({a}, k={b})")),
            inner.clone().prop_map(|a| format!("namespace(x={a})")),
            (inner.clone(), inner.clone(), inner).prop_map(|(a, b, c)| format!("({a} if {b} else {c})")),
        ]
    })
}

fn statement() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        expression().prop_map(|value| format!("{{% set ns.x = {value} %}}")),
        expression().prop_map(|value| format!("{{% set ns.y = {value} %}}")),
        expression().prop_map(|value| format!("{{% set x = {value} %}}")),
        expression().prop_map(|value| format!("{{{{ {value} }}}}")),
    ];
    leaf.prop_recursive(3, 12, 3, |inner| {
        let body = prop::collection::vec(inner, 1..4).prop_map(|body| body.concat());
        prop_oneof![
            (expression(), body.clone())
                .prop_map(|(list, body)| format!("{{% for m in {list} %}}{body}{{% endfor %}}")),
            (1..3000, body.clone())
                .prop_map(|(n, body)| format!("{{% for m in range({n}) %}}{body}{{% endfor %}}")),
            (expression(), body.clone())
                .prop_map(|(test, body)| format!("{{% if {test} %}}{body}{{% endif %}}")),
            body.prop_map(|body| format!("{{% set x %}}{body}{{% endset %}}")),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_templates_end(statements in prop::collection::vec(statement(), 1..6)) {
        let source = format!("{{% set ns = namespace(x=[1], y='a') %}}{}", statements.concat());
        let messages = [message("user", "hello"), message("assistant", "")];
        let _ = on_small_stack(|| render(&source, &messages));
    }
}
