// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

// Aside are the names, as a pattern, under which Listen makes a socket before it has its own.
const Aside = ".mustang-*"

// Listen makes the plugin's socket, for root only (mode 0600), and its directory if that is missing.
// A socket left behind by a dead process is replaced; one that is answered, and a file of any other
// kind, is an error. Closing the listener removes the socket.
func Listen(path string) (net.Listener, error) {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("make the directory of the plugin socket: %w", err)
	}
	if err := checkStale(path); err != nil {
		return nil, err
	}
	// Bound in a private directory and then renamed: at its final name the socket never has a wider
	// mode, and the engine, which lists the directory, never sees it half made.
	tmp, err := os.MkdirTemp(dir, Aside)
	if err != nil {
		return nil, fmt.Errorf("make the plugin socket %s: %w", path, err)
	}
	defer os.RemoveAll(tmp)
	aside := filepath.Join(tmp, "s")
	l, err := net.Listen("unix", aside)
	if err != nil {
		return nil, fmt.Errorf("make the plugin socket %s: %w", path, err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false) // it knows the name aside only
	if err := errors.Join(os.Chmod(aside, 0o600), os.Rename(aside, path)); err != nil {
		l.Close()
		return nil, fmt.Errorf("make the plugin socket %s: %w", path, err)
	}
	made, err := os.Lstat(path)
	if err != nil {
		l.Close()
		return nil, fmt.Errorf("make the plugin socket %s: %w", path, err)
	}
	return &listener{Listener: l, path: path, made: made}, nil
}

func checkStale(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look at the plugin socket: %w", err)
	}
	if info.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("%s is in the way of the plugin socket: it is no socket; remove it", path)
	}
	c, err := net.DialTimeout("unix", path, time.Second)
	switch {
	case err == nil:
		c.Close()
		return fmt.Errorf("the plugin socket %s is answered by another process: stop the other mustang daemon first", path)
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, fs.ErrNotExist):
		return nil
	}
	// Anything else, such as a full backlog, is a sign of life.
	return fmt.Errorf("the plugin socket %s may be in use: %w", path, err)
}

type listener struct {
	net.Listener
	path string
	made fs.FileInfo
	once sync.Once
}

// Close removes the socket too, unless another process has put its own there.
func (l *listener) Close() error {
	err := l.Listener.Close()
	l.once.Do(func() {
		if now, serr := os.Lstat(l.path); serr == nil && os.SameFile(now, l.made) {
			err = errors.Join(err, os.Remove(l.path))
		}
	})
	return err
}
