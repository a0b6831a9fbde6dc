// SPDX-License-Identifier: Apache-2.0

// Package drift is a difference between what mustang wants of the kernel and what is there.
package drift

import "errors"

// Difference is one thing that is not as it should be.
type Difference struct {
	What   string `json:"what"` // where it is: mst_endpoints 10.201.0.2
	Wanted string `json:"wanted"`
	Found  string `json:"found"`
	Do     string `json:"do"`             // what mends it
	Note   bool   `json:"note,omitempty"` // no difference, but what somebody who asks should know
}

// Same tells whether d and o are about one thing, of which more may have changed between two looks.
func (d Difference) Same(o Difference) bool { return d.What == o.What }

// Repair is what to do about what a start mends.
const Repair = "mustang verify --repair"

// Nothing is found where something is missing, and wanted where something is left over.
const Nothing = "nothing"

// Report is told of differences, one at a time.
type Report func(Difference)

// Missing tells of something that is not there.
func (r Report) Missing(what, wanted string) {
	r(Difference{What: what, Wanted: wanted, Found: Nothing, Do: Repair})
}

// Leftover tells of something that nothing explains.
func (r Report) Leftover(what, found string) {
	r(Difference{What: what, Wanted: Nothing, Found: found, Do: Repair})
}

// Differs tells of something that is otherwise than it should be.
func (r Report) Differs(what, wanted, found string) {
	r(Difference{What: what, Wanted: wanted, Found: found, Do: Repair})
}

// ErrReported is the error of what cannot be looked at because of a difference that was told of.
var ErrReported = errors.New("told of as a difference")
