// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"errors"
	"net/http"
)

// ErrNoDaemon says that no daemon answers on the socket.
var ErrNoDaemon = errors.New("no mustang daemon is running")

// Error is a daemon's refusal.
type Error struct {
	Status  int    // of HTTP, 400 to 599
	Message string // the daemon's error, unchanged
}

func (e *Error) Error() string { return e.Message }

// badRequest marks an error as the caller's, made before the Host is asked.
type badRequest struct{ error }

func (badRequest) InvalidParameter() {}
func (e badRequest) Unwrap() error   { return e.error }

// The classes of refusals besides badRequest.
type (
	notFound    struct{ error }
	conflict    struct{ error }
	unavailable struct{ error }
)

func (notFound) NotFound()          {}
func (e notFound) Unwrap() error    { return e.error }
func (conflict) Conflict()          {}
func (e conflict) Unwrap() error    { return e.error }
func (unavailable) Unavailable()    {}
func (e unavailable) Unwrap() error { return e.error }

// classed undoes statusOf, so that a refusal is of the same class on both sides.
func classed(e *Error) error {
	switch e.Status {
	case http.StatusBadRequest:
		return badRequest{e}
	case http.StatusNotFound:
		return notFound{e}
	case http.StatusConflict:
		return conflict{e}
	case http.StatusServiceUnavailable:
		return unavailable{e}
	}
	return e
}

// statusOf finds the HTTP status of a Host's error by its marker method, the convention of the
// Docker engine's packages; errors without one are the daemon's own fault.
func statusOf(err error) int {
	var (
		tooLarge  *http.MaxBytesError
		invalid   interface{ InvalidParameter() }
		notFound  interface{ NotFound() }
		conflict  interface{ Conflict() }
		forbidden interface{ Forbidden() }
		absent    interface{ Unavailable() }
	)
	switch {
	case errors.As(err, &tooLarge):
		return http.StatusRequestEntityTooLarge
	case errors.As(err, &invalid):
		return http.StatusBadRequest
	case errors.As(err, &notFound):
		return http.StatusNotFound
	case errors.As(err, &conflict):
		return http.StatusConflict
	case errors.As(err, &forbidden):
		return http.StatusForbidden
	case errors.As(err, &absent), errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return http.StatusServiceUnavailable
	}
	return http.StatusInternalServerError
}
