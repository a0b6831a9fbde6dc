// SPDX-License-Identifier: Apache-2.0

package service

import (
	"errors"
	"fmt"
)

// ErrNotFound says that no service, backend or container answers to a reference.
var ErrNotFound error = notFound{errors.New("not found")}

// The classes of this package's refusals, told apart by marker method as the Docker engine's packages
// do. An error without any is a fault of the store or the maps.
type (
	invalid     struct{ error } // makes no sense, whatever else there is
	conflict    struct{ error } // clashes with what there is
	notFound    struct{ error }
	unavailable struct{ error } // not now
)

func (invalid) InvalidParameter() {}
func (conflict) Conflict()        {}
func (notFound) NotFound()        {}
func (unavailable) Unavailable()  {}

func (e invalid) Unwrap() error     { return e.error }
func (e conflict) Unwrap() error    { return e.error }
func (e notFound) Unwrap() error    { return e.error }
func (e unavailable) Unwrap() error { return e.error }

func invalidf(format string, args ...any) error  { return invalid{fmt.Errorf(format, args...)} }
func conflictf(format string, args ...any) error { return conflict{fmt.Errorf(format, args...)} }
