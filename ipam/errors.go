// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"errors"
	"fmt"
)

// Kinds of refusal, for errors.Is. The errors that wrap them name the pool, the address, the holder and
// what to do.
var (
	// ErrInvalid says that the request itself makes no sense: a malformed prefix, an address outside
	// of its pool, a network or broadcast address.
	ErrInvalid = errors.New("invalid request")
	// ErrNoPool says that there is no pool with the given id.
	ErrNoPool = errors.New("no such pool")
	// ErrOverlap says that a pool would share addresses with another pool, a route of the host, or a
	// reserved range.
	ErrOverlap = errors.New("pools must not overlap")
	// ErrRoute is the [ErrOverlap] with a route of the host's.
	ErrRoute = fmt.Errorf("%w", ErrOverlap)
	// ErrExhausted says that a pool has no free address, or the default pools no free block.
	ErrExhausted = errors.New("exhausted")
	// ErrTaken says that a lease for the wanted address exists.
	ErrTaken = errors.New("address already in use")
)
