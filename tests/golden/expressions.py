"""Jinja as chat templates speak it, a piece at a time. Import this; it is not a program."""

# Each is printed by a template of its own.
EXPRESSIONS = r"""
7 // 2
-7 // 2
7 // -2
7.0 // 2
7 % 3
-7 % 3
7 / 2
6 / 2
2 ** 10
2 ** -1
2 ** 0.5
1.0
1.5
1e3
1e16
1e22
1.5e300
0.1 + 0.2
1 / 3
100000000000000000.0
1e-5
0.0001
-0.0
12345678901234567890
12345678901234567890 * 12345678901234567890
1_000
0x10
1 + 1.0
true
false
none
True
False
None
[true, none, 1.0, 'a']
['a', "it's", 'say "x"', 'both \' and "', 'tab\t', 'é', '\n']
{'a': 1, 'b': [1, 2], 3: none}
{'b': 1, 'a': 2}
(1, 2)
(1,)
()
[]
{}
[1, 2] + [3]
'a' + 'b'
'a' ~ 1 ~ none ~ true ~ 1.0
'ab' * 3
3 * 'ab'
[1] * 2
'a' in 'abc'
'x' not in 'abc'
1 in [1, 2]
'a' in {'a': 1}
none in [none]
1 < 2 < 3
1 == 1.0
'a' < 'b'
1 == true
'1' == 1
none == false
not 1
1 and 0
'' or 'x'
0 or none
[] and 1
'a' if true else 'b'
'a' if false
('a' if false) is defined
x
x is defined
x is undefined
x is none
x | default('d')
'' | default('d')
'' | default('d', true)
none | default('d')
none | default('d', boolean=true)
messages[0].nothing
messages[0].nothing is defined
messages[0]['nothing']
messages[5] is defined
messages[5]
messages[-1].role
messages[-9] is defined
messages[0].nothing.more
x.y
x + 'a'
x ~ 'a'
x | length
x | upper
x | trim
x == none
not x
x | list
x | tojson
none | length
none | trim
none | upper
none + 'a'
'a' + 1
1 + 'a'
'a' + none
'abc'[0]
'abc'[-1]
'abc'[1:]
'abc'[:-1]
'abc'[::-1]
'abc'[::2]
'abc'[5:]
'abc'[-5:2]
'héß世'[1:3]
'héß世' | length
[1,2,3][1:]
[1,2,3][::-1]
(1,2,3)[:2]
messages[1:] | length
messages[::-1][0].role
messages[:1] + messages[2:]
messages[1:][0].role
messages[:0]
{'a': 1}.items() | list
{'a': 1}.keys() | list
{'a': 1}.values() | list
{'a': 1}.get('a')
{'a': 1}.get('b')
{'a': 1}.get('b', 5)
{'a': 1} | items | list
{'b': 1, 'a': 2} | dictsort
{'b': 1, 'a': 2} | dictsort(by='value')
{'a': 1} | length
{'a': 1}.a
{'a': {'b': 2}}.a.b
{'a': 1} == {'a': 1}
dict(a=1, b=2)
dict(a=1).b is defined
messages[0]
messages
messages | length
messages | map(attribute='role') | list
messages | map(attribute='role') | join(', ')
messages | map(attribute='nope', default='d') | list
messages | selectattr('role', 'equalto', 'user') | list | length
messages | selectattr('role', 'eq', 'user') | list | length
messages | selectattr('role', '==', 'user') | map(attribute='content') | list
messages | selectattr('role') | list | length
messages | selectattr('nope', 'defined') | list | length
messages | selectattr('role', 'in', ['user', 'system']) | list | length
messages | rejectattr('role', 'equalto', 'user') | list | length
messages | selectattr('role', 'equalto', 'user') | first
messages | selectattr('role', 'equalto', 'nobody') | first
messages | selectattr('role', 'equalto', 'nobody') | first is defined
messages | first
messages | last
messages | groupby('role')
messages | groupby('role') | length
messages | sort(attribute='role') | map(attribute='role') | list
messages | unique(attribute='role') | list | length
messages | batch(2) | list | length
messages | slice(2) | list | length
messages | reverse | list | length
messages | list == messages
messages is iterable
messages is sequence
messages is mapping
messages is string
none is iterable
none is sequence
x is iterable
x is sequence
x is mapping
1 is iterable
'a' is iterable
'a' is sequence
{} is iterable
{} is sequence
{} is mapping
range(3) is sequence
range(3) is iterable
1 is number
1 is integer
1.0 is float
1.0 is integer
true is number
true is boolean
true is integer
1 is boolean
none is none
'a' is string
1 is string
1 is odd
2 is even
4 is divisibleby(2)
1 is eq 1
1 is equalto(1)
1 is sameas 1
true is true
1 is true
false is false
'a' is in 'abc'
'a' is lower
'A' is upper
'abc' is filter
'upper' is filter
'nope' is filter
'defined' is test
1 is ge 1
1 is lt 2
1 is greaterthan 0
raise_exception is defined
'a b' is escaped
'a,b,,c'.split(',')
'a,b,c'.split(',', 1)
'  a  b '.split()
'  a  b '.split(' ')
' a b c '.split(none, 1)
'abc'.split('b')[-1]
'a</think>b</think>c'.split('</think>')[-1].lstrip('\n')
'abc'.rsplit('b')
'a b c'.rsplit(none, 1)
' a b c '.rsplit(maxsplit=1)
'a b c'.split(maxsplit=1)
'a,b,c'.split(',', maxsplit=1)
'a,b,c'.split(sep=',', maxsplit=-1)
'a\nb'.splitlines(keepends=true)
'abc'.split('')
'abc'.partition('')
'a.b.c'.rsplit('.', 1)
'a.b.c'.partition('.')
'a.b.c'.rpartition('.')
'a\nb\r\nc\rd'.splitlines()
'a\nb\n'.splitlines(true)
'a\x0bb\x0cc\x1cd\u2028e\x85f'.splitlines()
'abc'.startswith('a')
'abc'.startswith(('x', 'a'))
'abc'.endswith('c')
'abc'.endswith(('x', 'c'))
'abc'.find('c')
'abc'.find('x')
'abc'.index('x')
'abcabc'.rfind('a')
'abcabc'.count('a')
'abcabc'.replace('a', 'x')
'abcabc'.replace('a', 'x', 1)
'abc'.replace('', '-')
'abc'.upper()
'ABC'.lower()
'straße'.upper()
'ΟΔΟΣ'.lower()
'İ'.lower()
'hello world'.title()
"they're bill's".title()
'hELLO wORLD'.capitalize()
'abc'.removeprefix('a')
'abc'.removesuffix('c')
'abc'.isalpha()
'abc1'.isalnum()
'12'.isdigit()
'½'.isnumeric()
'²'.isdigit()
'  '.isspace()
'abc'.islower()
'ABC'.isupper()
'a-b'.join(['x', 'y'])
'{} {}'.format('a', 1)
'{0}{1}{0}'.format('a', 'b')
'{a}'.format(a=1)
'{:>5}|{:<5}|{:^5}|{:05d}|{:.2f}'.format('a', 'b', 'c', 7, 3.14159)
'xxabcxx'.strip('x')
'xxabcxx'.lstrip('x')
'xxabcxx'.rstrip('x')
'\x1f\x1c \t a \x85\u2028\u3000\x1d'.strip() | tojson
'\x1f a \x1d'.lstrip() | tojson
'\x1f a \x1d'.rstrip() | tojson
'\x1f a \x1d' | trim | tojson
'a\x1fb\x1cc d'.split()
'\u200b\ufeffa'.strip() | tojson
'xxaxx' | trim('x')
'abc'.nope()
'abc'.nope
[1,2,2].count(2)
[1,2].append(3)
{'a': 1}.update({'b': 2})
{'a': 1}.pop('a')
[1,2].pop()
'abc' | upper
'ABC' | lower
'abc' | capitalize
'hello wORLD foo-bar (x) [y]' | title
"they're" | title
'  a  ' | trim
'a b' | replace(' ', '-')
'aaa' | replace('a', 'b', 2)
'abc' | length
'abc' | count
'abc' | first
'abc' | last
'abc' | list
'abc' | reverse
'abc' | string
1.0 | string
none | string
true | string
[1] | string
{'a': 'b'} | string
'3' | int
'x' | int(7)
'3.7' | int
3.7 | int
none | int
'0x1f' | int(0, 16)
'3.5' | float
3 | float
-3 | abs
3.567 | round
3.567 | round(1)
2.5 | round
3.2 | round(0, 'ceil')
3.8 | round(method='floor')
42 | round
[3,1,2] | sort
[3,1,2] | sort(reverse=true)
['b','A','c'] | sort
['b','A','c'] | sort(case_sensitive=true)
[3,1,2] | min
[3,1,2] | max
[3,1,2] | sum
[1,1,2] | unique | list
['a','A'] | unique | list
[1,2,3] | join
[1,2,3] | join('-')
[1,none,'a',true] | join('-')
[[1,2],[3]] | sum(start=[])
[1,2,3,4] | select('even') | list
[1,2,3,4] | reject('even') | list
[1,0,none,2] | select | list
['a','b'] | map('upper') | list
['a','b'] | map('upper') | join
[' a '] | map('trim') | list
[1,2,3,4,5] | batch(2) | list
[1,2,3,4,5] | batch(2, 0) | list
[1,2,3,4,5] | slice(2) | list
[1,2] | last
[] | first
[] | last
[] | first is defined
[] | max
'a\nb' | indent
'a\nb\n\nc' | indent(2)
'a\nb' | indent(2, true)
'a\n\nb' | indent(2, blank=true)
'a\nb' | indent(width=2, first=true)
'a<b>&"\'' | e
'a<b>' | escape
'<b>' | safe
('<b>' | safe) ~ '<i>'
('<b>' | safe).strip()
['<', ('>' | safe)] | join(',')
'%s and %s' | format('a', 'b')
{'a': [1, 1.0, 1e20, true, none, 'é"\\\n<>&\'']} | tojson
{'a': [1, 2], 'b': {}} | tojson(indent=2)
{'a': [1, 2], 'b': []} | tojson(indent=4)
{'b': 1, 'a': 2} | tojson(sort_keys=true)
{'b': 1, 'a': 2} | tojson(separators=(',', ':'))
{'b': [1], 'a': 2} | tojson(indent=2, separators=(',', ': '))
'é😀\x7f\u2028' | tojson(ensure_ascii=true)
'é😀\x7f\u2028' | tojson
'\x00\x1f\x7f' | tojson
1e16 | tojson
1e22 | tojson
1.0 | tojson
1e-7 | tojson
0.1 | tojson
12345678901234567890123 | tojson
{1: 2, 1.5: 3, true: 4, none: 5} | tojson
(1, 2) | tojson
range(3) | list | tojson
'a' | tojson | tojson
messages | tojson
[] | tojson(indent=2)
{} | tojson(indent=2)
range(3) | list
range(1, 10, 3) | list
range(5, 0, -2) | list
range(3)[1]
range(3) | length
[1,2,3] | tojson ~ 'x'
namespace(a=1).a
namespace(a=1).b is defined
namespace({'a': 1}).a
1 if x is defined and x else 2
"a" "b"
'a' 'b' ~ 'c'
'\u00e9\x41\n\t\\\'\"\101'
'a' is not none
not 'a' is none
1 + 2 * 3 - 4 / 2
2 * 3 ** 2
-2 ** 2
- 3 | abs
1 - -1
'a' ~ 'b' == 'ab'
1 + 1 ~ 1 + 1
'a' ~ 'b' | upper
not true == false
[1,2,3][-1]
[1,2,3][5]
[1,2,3][5] is defined
[1,2,3]['a']
'abc'.0
[1,2].0
messages.0.role
[[1,2],[3,4]].1.0
{'a b': 1}['a b']
{1: 'x'}[1]
{'1': 'x'}[1]
{true: 'x'}[1]
{1: 'x'}[1.0]
messages[true].role
messages['0']
loop is defined
caller is defined
varargs is defined
'abc' == 'abc' != 'x'
1 if 0 else 2 if 0 else 3
[1, 2,]
{'a': 1,}
(1 , )
'a' | upper | lower | title
('a', 'b') | join
{'a': 1} is sameas {'a': 1}
'1' | int + 1
'5' * 2
1.5 // 0.5
7.5 % 2
1 // 0
1 % 0
1 / 0
1e400
[1] < [2]
[1, 2] == (1, 2)
(1, 2) == (1, 2)
'é' < 'z'
'a' ~ x ~ 'b'
[1, [2, 'a']] ~ ''
"it's" ~ ["it's"]
1.0 ~ ''
true + 1
true ~ ''
true and 'yes'
'a' | nope
1 is nope
strftime_now('%Y')
tools
tools is none
tools is defined
documents is none
add_generation_prompt
bos_token + eos_token ~ unk_token ~ pad_token ~ sep_token ~ cls_token ~ mask_token
messages[0].content
messages[0]['content'] | trim | length
messages[0].content.split('\n')
messages[0].role.title()
messages | map('tojson') | list
messages | map(attribute='content') | map('length') | sum
messages | map(attribute='content') | map('trim') | join('|')
'x' * 0
'abc' is string and 'abc' is not mapping
"{{ x }}"
'{% x %}'
'a' if messages else 'b'
messages and 'yes'
(messages | last).role == 'user'
messages[messages | length - 1].role
messages[-1]['role'] != 'assistant'
messages|selectattr("role", "equalto", "system")|map(attribute="content")|list|join("\n")
(messages[0].content, 1)
messages[0].items() | list
messages[0] | items | list
messages[0] | dictsort
messages[0] | list
messages[0].keys() | list
messages[0] | length
'content' in messages[0]
'nope' in messages[0]
messages[0] is mapping
messages[0].content is string
messages[0].get('content') | length
messages[0].get('tool_calls')
messages[0].tool_calls
messages[0].tool_calls is defined
messages[0]['tool_calls'] | length
(messages[0].tool_calls or []) | length
messages[0].get('name', 'none')
'abc' | map('upper') | list
{'a': 1, 'b': 2} | map('upper') | list
{'a': 1}.items() | length
{'a': 1}.items() | first
[{'a': 1}, {'a': 2}] | sum(attribute='a')
[{'a': {'b': 1}}] | map(attribute='a.b') | list
[[1, 2]] | map(attribute=0) | list
[{'a': 2}, {'a': 1}] | sort(attribute='a')
[{'a': 2}, {'a': 1}] | max(attribute='a')
[{'a': 2}, {'a': 1}] | groupby('a')
'a.b' | replace('.', '')
1 | replace('1', '2')
'abc' | batch(2) | list
1 | string + 'a'
1 | list
none | first
'a' | join(',')
'abc'|join('-')
{'a': 1} | join('-')
'12' is number
'a' ~ ('b' if x)
'' | length
'\r\n' | length
'abc' | default
x | default
x | d('e')
x | default(none)
x.y | default('z')
(x | default({})).y
'a'.join('bcd')
'🏽👍'[0]
'👍🏽' | length
'👍🏽' | reverse
'%' ~ 5 % 3
3 | round(2)
1234567.891 | round(2)
1e15 + 0.5
123456789012345678
9223372036854775807 + 1
0.1 * 3
2 / 3
1e100
5 // 0.3
-1 // 2.0
'%.3f' | format(2.0)
"{:,}".format(1234567)
"{0[a]}".format({'a': 1})
"{{}}".format()
""".strip().splitlines()

# What has no place in an expression, and blanks around it.
STATEMENTS = [
    "{% for m in messages %}{{ loop.previtem.role }}<{{ m.role }}>{{ loop.nextitem.role }}{% endfor %}",
    "{% for m in messages %}{{ loop.previtem is defined }}{{ loop.nextitem is defined }}{% endfor %}",
    "{% for m in messages %}{{ loop.previtem }}{% endfor %}",
    "{% for m in messages %}{{ loop.cycle('a', 'b') }}{{ loop.changed(m.role) }}{% endfor %}",
    "{% for m in messages if m.role == 'user' %}{{ loop.index }}{{ loop.last }}{% else %}none{% endfor %}",
    "{% for m in messages if m.role == 'nobody' %}{{ loop.index }}{% else %}none{% endfor %}",
    "{% for m in [] %}{% else %}empty{% endfor %}",
    "{% for m in x %}a{% else %}empty{% endfor %}",
    "{% for m in 1 %}a{% endfor %}",
    "{% for c in 'h\u00e9' %}{{ c }},{% endfor %}",
    "{% for k in {'b': 1, 'a': 2} %}{{ k }}{% endfor %}",
    "{% for k, v in {'b': 1, 'a': 2}.items() %}{{ k }}{{ v }}{% endfor %}",
    "{% for k, v in {'b': 1, 'a': 2} | dictsort %}{{ k }}{{ v }}{% endfor %}",
    "{% for a, b in [[1, 2], [3]] %}{{ a }}{% endfor %}",
    "{% for a, b in [(1, 2)] %}{{ a }}{{ b }}{% endfor %}",
    "{% for a, (b, c) in [(1, (2, 3))] %}{{ a }}{{ b }}{{ c }}{% endfor %}",
    "{% set x = 1 %}{% for i in [1, 2] %}{% set x = x + i %}{{ x }}{% endfor %}{{ x }}",
    "{% set ns = namespace(x=0) %}{% for i in [1, 2] %}{% set ns.x = ns.x + i %}{% endfor %}{{ ns.x }}",
    "{% set ns = namespace() %}{% set ns.a = 1 %}{{ ns.a }}{{ ns.b }}",
    "{% set ns = namespace(a=[]) %}{% set ns.a = ns.a + [1] %}{{ ns.a }}",
    "{% set ns.x = 1 %}",
    "{% set d = {} %}{% set d.x = 1 %}",
    "{% set ns = namespace(x=1) %}{{ ns.x.y }}",
    "{% if true %}{% set x = 1 %}{% endif %}{{ x }}",
    "{% set a, b = 1, 2 %}{{ a }}{{ b }}",
    "{% set a, b = [1, 2, 3] %}",
    "{% set a %}hello {{ 1 }}{% endset %}{{ a | upper }}",
    "{% set a | upper %}hello{% endset %}{{ a }}",
    "{% set a %}<b>{% endset %}{{ a ~ '<' }}{{ a + '<' }}{{ a is string }}",
    "{% macro f(a, b=2) %}{{ a }}{{ b }}{% endmacro %}{{ f(1) }}{{ f(1, 3) }}{{ f(b=5, a=4) }}",
    "{% macro f(a) %}{{ a is defined }}{{ a }}{% endmacro %}{{ f() }}",
    "{% macro f(a) %}{{ a }}{% endmacro %}{{ f(1, 2) }}",
    "{% macro f(a) %}{{ a }}{% endmacro %}{{ f(c=2) }}",
    "{% macro f() %}{{ messages | length }}{{ bos_token }}{{ y }}{% endmacro %}{% set y = 3 %}{{ f() }}",
    "{% macro f() %}{{ loop is defined }}{% endmacro %}{% for i in [1] %}{{ f() }}{% endfor %}",
    "{% set y = 1 %}{% macro f() %}{{ y }}{% endmacro %}{% set y = 2 %}{{ f() }}",
    "{% macro f() %}{{ caller() }}{% endmacro %}{% call f() %}body{{ 1 }}{% endcall %}",
    "{% macro f() %}{{ caller('x') }}{% endmacro %}{% call(a) f() %}body{{ a }}{% endcall %}",
    "{% macro f() %}  a {% endmacro %}{{ f() | trim ~ f() }}",
    "{% macro f(n) %}{{ n }}{% if n > 0 %}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(5) }}",
    "{% macro f() %}<b>{% endmacro %}{{ f() + '<' }}{{ f() is string }}{{ f() == '<b>' }}",
    "{% filter upper %}a{{ 'b' }}{% endfilter %}",
    "{% filter trim | upper %} a {% endfilter %}",
    "{% with a = 1 %}{{ a }}{% endwith %}{{ a }}",
    "{% with a = 1, b = 2 %}{{ a + b }}{% endwith %}",
    "{% raw %}{{ x }}{% if %}{% endraw %}",
    "{% generation %}{{ messages[0].role }}{% set q = 1 %}{% endgeneration %}{{ q }}",
    "{%- generation -%} a {%- endgeneration -%} b",
    "{% for m in messages %}{% generation %}{{ loop.index }}{{ m.role }}{% endgeneration %}{% endfor %}",
    "{% do 1 %}",
    "{% block a %}x{% endblock %}",
    "{% include 'x' %}",
    "{% import 'x' as y %}",
    "{% autoescape true %}{{ '<' }}{% endautoescape %}",
    "{% if x %}a{% elif messages %}b{% else %}c{% endif %}",
    "{% if x.y %}a{% endif %}",
    "{% if messages[0].nope %}a{% else %}b{% endif %}",
    "{% if messages[0].nope.more %}a{% endif %}",
    "{% if messages[0].role == 'user' and messages[0].nope == 1 %}a{% else %}b{% endif %}",
    "{# a comment #}x{#- y -#} z",
    "a\n{# comment #}\nb",
    "a  {#- c #}  b",
    "  {% if true %}  \n  a\n  {% endif %}  \n b",
    "a\n  {%- if true %}\n  b\n  {%- endif %}\nc",
    "a {%+ if true %}b{% endif +%}\nc",
    "  {%+ if true %}b{% endif %}\n\n\nc",
    "  {{ 1 }}\n  {{- 2 -}}  \n 3\n",
    "a{% if true %}\n{% endif %}\n\nb\n",
    "a\n\n",
    "a\n",
    "\n\na",
    "\ta\t{% if true %}\tb{% endif %}\t\n\tc",
    "\t {% if true %}\t\nb{% endif %}",
    "a\r\n{% if true %}\r\nb\r\n{% endif %}\r\nc\r\n",
    "a\rb{{ 'x\r\ny' | length }}",
    "{{ 'a\nb' | length }}",
    "{{ 1\n}}\n{{\n2 }}",
    "{%- if true -%}\n\n a \n\n{%- endif -%}\n b",
    "{% if true -%}\u00a0 a{%- endif %}",
    "a\u00a0{%- if true %}b{% endif %}",
    "a \u2028 {%- if true %}b{% endif %}",
    "{{- '' -}} \u000b\f a",
    "{{ '{{' }}{{ '}}' }}{{ '%}' }}{{ \"{#\" }}",
    "{{ {'a': {'b': 1}}}}",
    "{{ {'a': 1} }}}",
    "{% if '%}' == '%}' %}a{% endif %}",
    "{{ 'a' }}{{ }}",
    "{{ 1 2 }}",
    "{% if 1 %}",
    "{% endif %}",
    "{% for %}{% endfor %}",
    "{% nope %}",
    "{{ 'a }}",
    "{{ a",
    "{% if true %}{% else %}{% else %}{% endif %}",
    "x\n\n{{ raise_exception('a' ~ 1) }}",
    "{% macro f(x) %}\n{{ raise_exception(x) }}\n{% endmacro %}\n\n{{ f('in a macro') }}",
    "{% set x %}\n{{ raise_exception('in a set') }}{% endset %}",
    "{% if messages[0].role != 'nobody' %}\n  {{- raise_exception(\"it's <b>\") -}}\n{% endif %}",
    "{{ raise_exception('') }}",
    "{{ raise_exception('two\nlines') }}",
    "{{ raise_exception(1) }}",
    "{{ raise_exception(none) }}",
    "{{ raise_exception(messages[0]) }}",
    "{{ 'x' if true else raise_exception('no') }}",
    "{{ x or raise_exception('no x') }}",
    "{{ [1,2] | map('nope') | list }}",
    "{{ messages[0].content | replace('l', 'L') }}{{ messages[0].content[:2] }}",
    "{% for m in messages | reverse %}{{ m.role }}{{ loop.last }}{% endfor %}",
    "{% for i in range(messages | length - 1, -1, -1) %}{{ i }}{{ messages[i].role }}{% endfor %}",
    "{% for g in messages | groupby('role') %}{{ g.grouper }}{{ g.list | length }}{% endfor %}",
    "{% for g, l in messages | groupby('role') %}{{ g }}{{ l | length }}{% endfor %}",
    "{% for b in messages | batch(2) %}{{ b | length }}{% endfor %}",
    "{% set t = {'a': 1} %}{% for k in t %}{{ t[k] }}{% endfor %}",
    "{% set a = [] %}{% set _ = a.append(1) %}{{ a }}",
    "{% for m in messages %}{% set role = m['role'] %}{{ role }}{% endfor %}{{ role }}",
    "{{ messages[0].content is not string and messages[0].content is iterable }}",
    "{% set d = dict(messages[0], content='x') %}{{ d }}",
    "{% set d = {'a': 1, **{'b': 2}} %}{{ d }}",
    "{% if 'x' in messages[0].content %}a{% endif %}{% if 'l' in messages[0]['content'] %}b{% endif %}",
    "{{ bos_token }}\n{% for m in messages %}\n{{ m.role }}\n{% endfor %}\n{{ eos_token }}\n",
    "{% set a = 'x' %}{% set b = a %}{% set a = 'y' %}{{ b }}",
    "{% for x in range(3) %}{{ x }}{% endfor %}{{ x }}",
    "{% set x = 5 %}{% for x in range(3) %}{{ x }}{% endfor %}{{ x }}",
    "{% set true_ = true %}{{ true_ }}",
    "{% macro a() %}1{% endmacro %}{% macro b() %}{{ a() }}{% endmacro %}{{ b() }}",
    "{{ f() }}{% macro f() %}1{% endmacro %}",
    "{% if true %}{% macro f() %}1{% endmacro %}{% endif %}{{ f() }}",
    "{% for i in [1] %}{% macro f() %}{{ i }}{% endmacro %}{{ f() }}{% endfor %}",
    "{% set x = 1 if false %}{{ x is defined }}{{ x }}",
    "{{ '%s' | format(messages[0].role) }}",
    "{{ messages[0].role | upper ~ '\n' }}",
    "{{ '\\n' }}{{ '\\\\n' | length }}{{ '\\q' }}",
    "{%if true%}a{%endif%}{{1}}{#x#}",
    "{%-if true-%} a {%-endif-%}",
    "{{ ''.join(['a', 'b']) }}{{ ' '.join(messages | map(attribute='role')) }}",
    "{# line #}\n{{ raise_exception('third') if true }}\n",
]

# What Python has and the engine lacks: an error, never another text.
MISSING = r"""
'%s-%d' % ('a', 3)
'%s' % 'x'
'%05.2f' % 3.14159
'%r' % 'x'
{'B': 1, 'a': 2} | dictsort(true)
raise_exception is callable
'abc'.startswith('b', 1)
'abcabc'.find('a', 1)
'abc'.index('c')
'aBc'.swapcase()
'abc'.center(7)
'abc'.ljust(5) ~ '|'
'abc'.rjust(5)
'42'.zfill(5)
'½'.isdecimal()
'12'.isdecimal()
'Abc'.istitle()
'a\tb'.expandtabs(4)
'abc'.casefold()
'abc'.encode('utf-8')
[1,2,3].index(2)
{'a': 1}.copy()
[1,2].copy()
'x' | int
'x' | float
'a\nb' | indent('--')
'<b>' | forceescape
'<p>a</p>' | striptags
'a b c' | wordcount
'hello world foo' | truncate(8)
'hello world foo bar' | truncate(12, true, '..')
'hello world foo' | wordwrap(5)
'abc' | center(7)
'a b&c' | urlencode
{'a': 1} | urlencode
12345 | filesizeformat
{'a': 1, 'b': none} | xmlattr
'http://a.b' | urlize
cycler('a', 'b').next()
joiner(',')()
1, 2
'%d%%' % 5
'a %s' % [1]
'%(a)s' % {'a': 1}
"%.1f" % 0.25
"%5d|%-5d|%+d" % (1, 2, 3)
"%x %X %o %e %g" % (255, 255, 8, 12345.678, 0.0001)
"{!r}".format('a')
""".strip().splitlines()

# Where the engine makes another text, or one where Python fails. Whole templates.
DIFFERENT = [
    "{{ missing in 'abc' }}",
    "{{ {'a': 1}.items() }}",
    "{{ {'a': 1}.keys() }}",
    "{{ {'items': 1}.items }}",
    "{{ [missing] }}",
    "{{ {'a': missing} }}",
    "{{ messages | map(attribute='missing') | list }}",
    "{{ messages | sum(attribute='missing') }}",
    "{{ '\u00bd'.isdigit() }}",
    "{{ ', '.join([1, 2]) }}",
    "{{ ('<b>' | safe) + '<i>' }}",
    "{{ {'a': 1} | pprint }}",
    "{{ {'a': 1} | attr('a') }}",
    "{{ range(3) | tojson }}",
    "{{ range(3) }}",
    "{{ lipsum is defined }}",
    "{{ self is defined }}",
    "{{ 3 > 'a' }}",
    "{{ none < 1 }}",
    "{{ ['\u2028'] }}",
    "{{ [1e16, 1e-5] }}",
    "{{ none | list }}",
    "{{ none | join }}",
    "{% for x in none %}a{% else %}b{% endfor %}",
    "{% set x = namespace(a=1) %}{{ x }}{{ x is mapping }}",
    "{% macro f() %}{% endmacro %}{{ f.arguments }}",
    "a\x1f{%- if true %}b{% endif %}",
    # A break or continue that leaves such a block takes the text behind it along.
    "{% for m in messages %}{% filter upper %}a{% break %}{% endfilter %}{% endfor %}b",
    "{% for m in messages %}{% set x %}a{% continue %}{% endset %}{% endfor %}b",
    # The line is that of the arguments.
    "{{\nraise_exception(\n'a' ~\n'b') }}",
]
