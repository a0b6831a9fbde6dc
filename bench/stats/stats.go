// SPDX-License-Identifier: Apache-2.0

// Package stats says how sure a median is.
package stats

import (
	"math"
	"slices"
)

const confidence = 0.95

// SureRuns is the fewest values that bound a median with that confidence.
const SureRuns = 6

// MedianInterval returns the median and the narrowest pair of order statistics that bounds the true median with 95 % confidence.
// It supposes nothing about how the values are spread. Fewer than SureRuns cannot be that sure: then it is their whole range.
func MedianInterval(values []float64) (median, low, high float64) {
	v := slices.Sorted(slices.Values(values))
	n := len(v)
	k := 0
	for k+1 <= (n-1)/2 && 1-2*binomialTail(n, k+1) >= confidence {
		k++
	}
	return (v[(n-1)/2] + v[n/2]) / 2, v[k], v[n-1-k]
}

// binomialTail is the probability that of n values at most k are below the true median.
func binomialTail(n, k int) float64 {
	sum := 0.0
	for i := range k + 1 {
		all, _ := math.Lgamma(float64(n + 1))
		some, _ := math.Lgamma(float64(i + 1))
		rest, _ := math.Lgamma(float64(n - i + 1))
		sum += math.Exp(all - some - rest - float64(n)*math.Ln2)
	}
	return sum
}
