// SPDX-License-Identifier: Apache-2.0

package stats

import "testing"

func TestMedianInterval(t *testing.T) {
	upTo := func(n int) []float64 {
		var v []float64
		for i := n; i > 0; i-- {
			v = append(v, float64(i))
		}
		return v
	}
	// The ranks of tables of the sign test: for 10 the 2nd and the 9th (97.9 %), for 20 the 6th and the 15th (95.9 %).
	for _, test := range []struct {
		n                 int
		median, low, high float64
	}{
		{1, 1, 1, 1},
		{2, 1.5, 1, 2},
		{5, 3, 1, 5},
		{6, 3.5, 1, 6},
		{9, 5, 2, 8},
		{10, 5.5, 2, 9},
		{20, 10.5, 6, 15},
		{25, 13, 8, 18},
	} {
		median, low, high := MedianInterval(upTo(test.n))
		if got, want := [3]float64{median, low, high}, [3]float64{test.median, test.low, test.high}; got != want {
			t.Errorf("%d values: got %v, want %v", test.n, got, want)
		}
	}
}
