// SPDX-License-Identifier: Apache-2.0

package state_test

import (
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"

	"github.com/mustang-net/mustang/state"
)

type record struct {
	Name string `json:"name"`
	N    int    `json:"n"`
}

// contents reads a bucket in the order of Each.
func contents(t *testing.T, s state.Store, bucket string) (keys []string, records []record) {
	t.Helper()
	require.NoError(t, s.View(func(tx state.Tx) error {
		return tx.Each(bucket, func(key string, decode func(any) error) error {
			var r record
			keys = append(keys, key)
			defer func() { records = append(records, r) }()
			return decode(&r)
		})
	}))
	return keys, records
}

func put(s state.Store, bucket, key string, r record) error {
	return s.Update(func(tx state.Tx) error { return tx.Put(bucket, key, r) })
}

func TestConformance(t *testing.T) {
	errStop := errors.New("stop")
	scenarios := []struct {
		name string
		run  func(t *testing.T, s state.Store)
	}{
		{"a missing record is not found", func(t *testing.T, s state.Store) {
			require.NoError(t, s.View(func(tx state.Tx) error {
				var r record
				found, err := tx.Get("a", "k", &r)
				require.False(t, found)
				require.Zero(t, r)
				return err
			}))
		}},
		{"a record comes back and is replaced", func(t *testing.T, s state.Store) {
			require.NoError(t, put(s, "a", "k", record{"old", 1}))
			require.NoError(t, put(s, "a", "k", record{"new", 2}))
			require.NoError(t, s.View(func(tx state.Tx) error {
				var r record
				found, err := tx.Get("a", "k", &r)
				require.True(t, found)
				require.Equal(t, record{"new", 2}, r)
				return err
			}))
		}},
		{"a transaction sees its own writes", func(t *testing.T, s state.Store) {
			require.NoError(t, s.Update(func(tx state.Tx) error {
				require.NoError(t, tx.Put("a", "k", record{"x", 1}))
				var r record
				found, err := tx.Get("a", "k", &r)
				require.True(t, found)
				require.NoError(t, tx.Delete("a", "k"))
				gone, err2 := tx.Get("a", "k", &r)
				require.False(t, gone)
				return errors.Join(err, err2)
			}))
		}},
		{"buckets are apart and walked in key order", func(t *testing.T, s state.Store) {
			for i, key := range []string{"b", "c", "a", "aa"} {
				require.NoError(t, put(s, "one", key, record{key, i}))
			}
			require.NoError(t, put(s, "two", "z", record{}))
			keys, records := contents(t, s, "one")
			require.Empty(t, cmp.Diff([]string{"a", "aa", "b", "c"}, keys))
			require.Empty(t, cmp.Diff([]record{{"a", 2}, {"aa", 3}, {"b", 0}, {"c", 1}}, records))
		}},
		{"an error rolls back every write", func(t *testing.T, s state.Store) {
			require.NoError(t, put(s, "a", "kept", record{"old", 1}))
			require.NoError(t, put(s, "a", "deleted", record{"old", 2}))
			require.ErrorIs(t, s.Update(func(tx state.Tx) error {
				require.NoError(t, tx.Put("a", "kept", record{"new", 9}))
				require.NoError(t, tx.Put("a", "kept", record{"newer", 9}))
				require.NoError(t, tx.Delete("a", "deleted"))
				require.NoError(t, tx.Put("b", "added", record{"new", 9}))
				return errStop
			}), errStop)
			keys, records := contents(t, s, "a")
			require.Equal(t, []string{"deleted", "kept"}, keys)
			require.Equal(t, []record{{"old", 2}, {"old", 1}}, records)
			keys, _ = contents(t, s, "b")
			require.Empty(t, keys)
		}},
		{"a panic rolls back and lets go of the store", func(t *testing.T, s state.Store) {
			require.Panics(t, func() {
				_ = s.Update(func(tx state.Tx) error {
					require.NoError(t, tx.Put("a", "k", record{}))
					panic("bug")
				})
			})
			keys, _ := contents(t, s, "a")
			require.Empty(t, keys)
			require.NoError(t, put(s, "a", "k", record{}))
		}},
		{"a value that JSON cannot hold is refused", func(t *testing.T, s state.Store) {
			err := s.Update(func(tx state.Tx) error { return tx.Put("a", "k", func() {}) })
			require.ErrorContains(t, err, "encode record a/k")
		}},
		{"a record of another shape is an error with its name", func(t *testing.T, s state.Store) {
			require.NoError(t, put(s, "a", "k", record{"x", 1}))
			err := s.View(func(tx state.Tx) error {
				var n int
				_, err := tx.Get("a", "k", &n)
				return err
			})
			require.ErrorContains(t, err, "decode record a/k")
		}},
		{"deleting what is not there is no error", func(t *testing.T, s state.Store) {
			require.NoError(t, s.Update(func(tx state.Tx) error { return tx.Delete("a", "k") }))
		}},
		{"a view cannot write", func(t *testing.T, s state.Store) {
			require.NoError(t, put(s, "a", "k", record{}))
			require.ErrorIs(t, s.View(func(tx state.Tx) error { return tx.Put("a", "k", 1) }), state.ErrReadOnly)
			require.ErrorIs(t, s.View(func(tx state.Tx) error { return tx.Delete("a", "k") }), state.ErrReadOnly)
		}},
		{"an error stops the walk and is returned", func(t *testing.T, s state.Store) {
			require.NoError(t, put(s, "a", "1", record{}))
			require.NoError(t, put(s, "a", "2", record{}))
			calls := 0
			require.ErrorIs(t, s.View(func(tx state.Tx) error {
				return tx.Each("a", func(string, func(any) error) error { calls++; return errStop })
			}), errStop)
			require.Equal(t, 1, calls)
		}},
		{"a walk may write to another bucket", func(t *testing.T, s state.Store) {
			require.NoError(t, put(s, "a", "1", record{"x", 1}))
			require.NoError(t, s.Update(func(tx state.Tx) error {
				return tx.Each("a", func(key string, decode func(any) error) error {
					var r record
					return errors.Join(decode(&r), tx.Put("b", key, r))
				})
			}))
			keys, records := contents(t, s, "b")
			require.Equal(t, []string{"1"}, keys)
			require.Equal(t, []record{{"x", 1}}, records)
		}},
		{"names that are not the owner's to use", func(t *testing.T, s state.Store) {
			for _, name := range [][2]string{{"", "k"}, {"a", ""}, {"meta", "layout"}} {
				require.Error(t, put(s, name[0], name[1], record{}), "%q", name)
				require.Error(t, s.Update(func(tx state.Tx) error { return tx.Delete(name[0], name[1]) }), "%q", name)
				require.Error(t, s.View(func(tx state.Tx) error {
					_, err := tx.Get(name[0], name[1], &record{})
					return err
				}), "%q", name)
			}
			require.Error(t, s.View(func(tx state.Tx) error {
				return tx.Each("meta", func(string, func(any) error) error { return nil })
			}))
		}},
		{"concurrent changes are one after the other", func(t *testing.T, s state.Store) {
			var wg sync.WaitGroup
			for range 20 {
				wg.Go(func() {
					_ = s.Update(func(tx state.Tx) error {
						var r record
						if _, err := tx.Get("a", "count", &r); err != nil {
							return err
						}
						r.N++
						return tx.Put("a", "count", r)
					})
				})
			}
			wg.Wait()
			_, records := contents(t, s, "a")
			require.Equal(t, []record{{"", 20}}, records)
		}},
		{"a closed store says so", func(t *testing.T, s state.Store) {
			require.NoError(t, s.Close())
			nothing := func(state.Tx) error { return nil }
			require.ErrorIs(t, s.View(nothing), state.ErrClosed)
			require.ErrorIs(t, s.Update(nothing), state.ErrClosed)
			require.NoError(t, s.Close())
		}},
	}
	stores := map[string]func(t *testing.T) state.Store{
		"memory": func(*testing.T) state.Store { return state.Memory() },
		"file": func(t *testing.T) state.Store {
			s, err := state.Open(filepath.Join(t.TempDir(), "state.db"), state.Options{})
			require.NoError(t, err)
			return s
		},
	}
	for kind, open := range stores {
		for _, sc := range scenarios {
			t.Run(fmt.Sprintf("%s/%s", kind, sc.name), func(t *testing.T) {
				s := open(t)
				defer s.Close()
				sc.run(t, s)
			})
		}
	}
}
