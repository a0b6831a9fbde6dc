// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestTable(t *testing.T) {
	in := `note	a machine
sample	a	98
sample	b	100
sample	b	100
sample	a	102
sample	a	99
sample	b	100
figure	a/b	Gbit/s	ratio a b	>=0.98	b
figure	b less a	ms	difference b a	<1	
figure	a again	ms	difference b a	<=b less a	
figure	b	ms	median b		
`
	want := `a machine

FIGURE    VALUE  95 % INTERVAL   UNIT   RUNS  TARGET      REACHED                    MEDIANS              AGAINST
a/b       0.990  0.980 … 1.020   ratio  3     >=0.98      reached                    99.0 / 100.0 Gbit/s  b
b less a  1.000  -2.000 … 2.000  ms     3     <1          not reached, within noise  100.0 / 99.0 ms      -
a again   1.000  -2.000 … 2.000  ms     3     <=b less a  reached, within noise      100.0 / 99.0 ms      -
b         100.0  100.0 … 100.0   ms     3     -           -                          -                    -
`
	var out strings.Builder
	if err := run(strings.NewReader(in), &out, "table"); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Error(diff)
	}
}

func TestJSON(t *testing.T) {
	var out strings.Builder
	if err := run(strings.NewReader("sample\ta\t2\nfigure\tf\ts\tmedian a\t<3\tnothing\n"), &out, "json"); err != nil {
		t.Fatal(err)
	}
	want := `[
  {
    "name": "f",
    "value": 2,
    "unit": "s",
    "target": "<3",
    "reached": true,
    "baseline": "nothing",
    "runs": 1,
    "low": 2,
    "high": 2
  }
]
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Error(diff)
	}
}

func TestRefused(t *testing.T) {
	for in, want := range map[string]string{
		"sample\ta\t":                                `line 1: a run of a gave no number but ""`,
		"what\ta":                                    "line 1: want sample, figure or note",
		"figure\tf\ts\tmedian a\t\t":                 "figure f: no run of a",
		"sample\ta\t1\nfigure\tf\ts\tmean a\t\t":     "want median, ratio or difference",
		"sample\ta\t1\nfigure\tf\ts\tmedian a\t1\t":  "want >=, <= or <",
		"sample\ta\t1\nfigure\tf\ts\tmedian a\t<b\t": "neither a number nor a figure before it",
		"sample\ta\t1\nsample\ta\t1\nsample\tb\t1\nfigure\tf\ts\tratio a b\t\t": "2 runs of a and 1 of b are no pairs",
	} {
		err := run(strings.NewReader(in), &strings.Builder{}, "table")
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", in, err, want)
		}
	}
}
