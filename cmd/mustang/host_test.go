// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/mustang-net/mustang/state"
)

func TestAStateThatAnotherProcessHasIsWaitedFor(t *testing.T) {
	locked := fmt.Errorf("open the state: %w", state.ErrLocked)
	for _, tt := range []struct {
		name    string
		answers []error // the last one again and again
		limit   time.Duration
		want    error
		tries   int // at least
	}{
		{"free", []error{nil}, 0, nil, 1},
		{"free after a while", []error{locked, locked, nil}, time.Hour, nil, 3},
		{"another error", []error{locked, errors.ErrUnsupported}, time.Hour, errors.ErrUnsupported, 2},
		{"never free", []error{locked}, time.Millisecond, state.ErrLocked, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tries := 0
			_, _, err := whenUnlocked(t.Context(), tt.limit, func(context.Context) (int, func() error, error) {
				err := tt.answers[min(tries, len(tt.answers)-1)]
				tries++
				return 0, nil, err
			})
			require.ErrorIs(t, err, tt.want)
			require.GreaterOrEqual(t, tries, tt.tries)
		})
	}
}
