// SPDX-License-Identifier: Apache-2.0

package api

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// probeTimeout bounds how long we wait for an accepting daemon; a full backlog blocks connect.
const probeTimeout = 2 * time.Second

// maxSocketPath is what fits into a sockaddr_un, less its final zero.
const maxSocketPath = 107

// Aside are the names, as a pattern, under which Listen makes a socket before it has its own.
const Aside = ".mst*"

// Listen makes the API's socket at path, for its owner only (mode 0600); a missing directory is made
// for its owner only as well. A socket on which nobody answers is replaced, anything else at path is
// left alone and an error. Closing the listener removes the socket, unless another took its place.
func Listen(path string) (net.Listener, error) {
	what := "listen on " + path
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	if err := vacant(path); err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	// Made aside and renamed: nobody can reach the socket before it has its mode, and a stale one
	// is replaced in one step.
	aside := filepath.Join(dir, strings.Replace(Aside, "*", strconv.Itoa(os.Getpid()), 1))
	if len(path) > maxSocketPath || len(aside) > maxSocketPath {
		return nil, fmt.Errorf("%s: a unix socket's path has at most %d bytes: set a shorter one", what, maxSocketPath)
	}
	if err := os.Remove(aside); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: aside, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	l.SetUnlinkOnClose(false)
	s := &socket{UnixListener: l, path: path}
	// --- from here to the rename the socket exists under its passing name only ---
	err = os.Chmod(aside, 0o600)
	if err == nil {
		s.made, err = os.Lstat(aside)
	}
	if err == nil {
		err = os.Rename(aside, path)
	}
	// --- critical section ends ---
	if err != nil {
		_ = l.Close()
		_ = os.Remove(aside)
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	return s, nil
}

// vacant says whether path can be taken.
func vacant(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("a %s is in the way: remove it", kind(info.Mode()))
	}
	conn, err := net.DialTimeout("unix", path, probeTimeout)
	switch {
	case err == nil:
		_ = conn.Close()
		return errors.New("another mustang daemon answers there: stop it first")
	case errors.Is(err, unix.ECONNREFUSED), errors.Is(err, fs.ErrNotExist):
		return nil
	}
	return fmt.Errorf("cannot tell whether another daemon uses it: %w", err)
}

func kind(m fs.FileMode) string {
	if m.IsDir() {
		return "directory"
	}
	return "file that is no socket"
}

// socket is a listener that answers for the name it was renamed to.
type socket struct {
	*net.UnixListener
	path string
	made fs.FileInfo
}

func (s *socket) Addr() net.Addr { return &net.UnixAddr{Name: s.path, Net: "unix"} }

func (s *socket) Close() error {
	if now, err := os.Lstat(s.path); err == nil && os.SameFile(now, s.made) {
		_ = os.Remove(s.path)
	}
	return s.UnixListener.Close()
}
