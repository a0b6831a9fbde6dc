// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"
)

// lookEvery is how long a socket, or a pin, that somebody has removed stays away.
const lookEvery = time.Second

// lasting is a listener whose socket comes back when somebody removes it, as who empties /run does: calls would find no
// daemon until its next start, and commands a state that is in use.
type lasting struct {
	path     string
	listen   func(path string) (net.Listener, error)
	log      logrus.FieldLogger
	accepted chan net.Conn
	closed   <-chan struct{}
	stop     context.CancelFunc
	serving  sync.WaitGroup

	mu   sync.Mutex
	open []net.Listener // the last is at the path
}

// last has a listener last. Without a first one, another process holds the socket at the path, and one is made when that has gone, or at once
// if nobody answers there: it is of a daemon that had made it so, and was killed.
func last(path string, first net.Listener, listen func(path string) (net.Listener, error), log logrus.FieldLogger) *lasting {
	ctx, stop := context.WithCancel(context.Background())
	l := &lasting{path: path, listen: listen, log: log, accepted: make(chan net.Conn), closed: ctx.Done(), stop: stop}
	if first != nil {
		l.serve(first)
	}
	l.serving.Go(func() {
		l.mend(first == nil)
		_ = every(ctx, lookEvery, func() error { // it has none
			l.mend(false)
			return nil
		})
	})
	return l
}

// serve hands on what a socket accepts. The caller has the lock, or is the only one.
func (l *lasting) serve(socket net.Listener) {
	l.open = append(l.open, socket)
	l.serving.Go(func() {
		for {
			conn, err := socket.Accept()
			if err != nil {
				if errors.Is(err, net.ErrClosed) {
					return
				}
				l.log.WithError(err).Warn("accept a call on " + l.path)
				select { // too many files are open: that passes
				case <-l.closed:
					return
				case <-time.After(lookEvery):
				}
				continue
			}
			select {
			case l.accepted <- conn:
			case <-l.closed:
				_ = conn.Close()
				return
			}
		}
	})
}

// mend makes the socket anew if nothing is at its path, or if call is set and nobody answers there.
func (l *lasting) mend(call bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, err := os.Lstat(l.path)
	if err == nil && call {
		var conn net.Conn
		if conn, err = net.DialTimeout("unix", l.path, time.Second); err == nil {
			_ = conn.Close()
		}
	}
	if l.isClosed() || !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ECONNREFUSED) {
		return
	}
	socket, err := l.listen(l.path)
	if err != nil {
		l.log.WithError(err).Warn("make a socket anew that was removed")
		return
	}
	l.log.WithField("socket", l.path).Warn("a socket was removed by somebody: made anew")
	for _, old := range l.open { // nobody finds them any more
		_ = old.Close()
	}
	l.open = nil
	l.serve(socket)
}

func (l *lasting) isClosed() bool {
	select {
	case <-l.closed:
		return true
	default:
		return false
	}
}

func (l *lasting) Accept() (net.Conn, error) {
	select {
	case conn := <-l.accepted:
		return conn, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *lasting) Addr() net.Addr { return &net.UnixAddr{Name: l.path, Net: "unix"} }

// Close ends all of it, and removes the socket.
func (l *lasting) Close() error {
	l.mu.Lock()
	if l.isClosed() {
		l.mu.Unlock()
		return nil
	}
	l.stop()
	var errs []error
	for _, socket := range l.open {
		errs = append(errs, socket.Close())
	}
	l.mu.Unlock()
	l.serving.Wait()
	return errors.Join(errs...)
}
