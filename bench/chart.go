// SPDX-License-Identifier: Apache-2.0

package bench

func checkChart(file string) error { return nil }

// WriteChart is
func (r Result) WriteChart(file string) error { return nil }
