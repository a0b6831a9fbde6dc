// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/stretchr/testify/require"

	"github.com/mustang-net/mustang/config"
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

// What writers that were killed have made beside a file goes with the next start; what somebody may just be writing stays.
func TestWhatIsLeftBesideFilesIsCleared(t *testing.T) {
	dir := t.TempDir()
	cfg := config.Config{
		PluginSocket: filepath.Join(dir, "plugins", "mustang.sock"), Socket: filepath.Join(dir, "run", "mustang.sock"),
		StateDir: filepath.Join(dir, "state"),
	}
	old := time.Now().Add(-2 * asideAge)
	for name, at := range map[string]time.Time{
		"plugins/.mustang-1/s": time.Now(), "run/.mst17": time.Now(), "state/.new-state-1": old, // go
		"plugins/other.sock": old, "run/.hidden": old, "state/state.db": old, "state/.new-state-2": time.Now(),
	} {
		path := filepath.Join(dir, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, nil, 0o600))
		require.NoError(t, os.Chtimes(path, at, at))
	}
	(&host{cfg: cfg, log: logrus.New()}).clearAside()
	var left []string
	require.NoError(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			name, _ := filepath.Rel(dir, path)
			left = append(left, name)
		}
		return err
	}))
	require.Equal(t, []string{"plugins/other.sock", "run/.hidden", "state/.new-state-2", "state/state.db"}, left)
}
