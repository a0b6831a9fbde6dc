// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime/debug"
	"time"

	"github.com/sirupsen/logrus"
)

const (
	contentType = "application/vnd.docker.plugins.v1.1+json"
	// maxBody is far above any real call: 4,096 published ports make about 400 kB.
	maxBody = 4 << 20
)

// errEmptyBody refuses what the engine sends when it retries a call that broke off: read as zero
// values it would create or delete the wrong thing.
var errEmptyBody = errors.New("the call came with an empty body, as a retry of a broken call does: refused, run the command again")

// call is one method of the protocol.
type call struct {
	// prepare decodes the body and gives the work to do; nil needs no body.
	prepare func(body []byte) (work, error)
	answer  any  // of a call without work
	removes bool // is finished even if the engine has gone away
}

// work answers a call and gives the undo of a success that nobody can be told of any more, or nil.
type work func(ctx context.Context) (answer any, undo func(context.Context) error, err error)

// handler is a method with its own request type.
type handler[T any] func(ctx context.Context, req T) (answer any, undo func(context.Context) error, err error)

// fixed always gives the same answer. The engine sends these calls with an empty body.
func fixed(answer any) call { return call{answer: answer} }

func on[T any](h handler[T]) call {
	return call{prepare: func(body []byte) (work, error) {
		var req T
		if err := decode(body, &req); err != nil {
			return nil, err
		}
		return func(ctx context.Context) (any, func(context.Context) error, error) { return h(ctx, req) }, nil
	}}
}

// removing is on for a method that takes something away and therefore has no undo.
func removing[T any](h func(ctx context.Context, req T) error) call {
	c := on(func(ctx context.Context, req T) (any, func(context.Context) error, error) {
		return emptyResponse{}, nil, h(ctx, req)
	})
	c.removes = true
	return c
}

// decode reads one JSON object.
func decode(body []byte, v any) error {
	body = bytes.TrimSpace(body)
	if len(body) == 0 {
		return errEmptyBody
	}
	if body[0] != '{' {
		return errors.New("the call's body is not a JSON object")
	}
	if err := json.Unmarshal(body, v); err != nil {
		return fmt.Errorf("read the call's body (%d bytes): %w", len(body), err)
	}
	return nil
}

func (p *Plugin) serve(w http.ResponseWriter, r *http.Request, method string, c call) {
	start := time.Now()
	id := requestID()
	log := p.log.WithFields(logrus.Fields{"request": id, "method": method})
	answer, err := p.answer(r, c, log)
	took := time.Since(start)
	if measure := p.measure.Load(); measure != nil {
		(*measure)(method, took, err)
	}
	log = log.WithField("took", took.Round(time.Microsecond))
	if err != nil {
		log.WithError(err).Error("call failed")
		write(w, http.StatusInternalServerError, failure(fmt.Sprintf("%v (request %s)", err, id)))
		return
	}
	log.Debug("call answered")
	write(w, http.StatusOK, answer)
}

func (p *Plugin) answer(r *http.Request, c call, log logrus.FieldLogger) (any, error) {
	if c.prepare == nil {
		return c.answer, nil
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, maxBody+1))
	if err != nil {
		return nil, fmt.Errorf("read the call's body: %w", err)
	}
	if len(body) > maxBody {
		return nil, fmt.Errorf("the call's body is larger than %d bytes", maxBody)
	}
	do, err := c.prepare(body)
	if err != nil {
		return nil, err
	}
	do = p.whenSettled(do)
	parent := r.Context()
	if c.removes {
		// What is half removed when the engine dies is asked for by nobody again.
		parent = context.WithoutCancel(parent)
	}
	return p.within(parent, do, log)
}

// whenSettled is work that waits for a daemon that starts.
func (p *Plugin) whenSettled(do work) work {
	return func(ctx context.Context) (any, func(context.Context) error, error) {
		if err := p.await(ctx); err != nil {
			return nil, nil, err
		}
		if p.refusal != nil {
			return nil, nil, p.refusal
		}
		return do(ctx)
	}
}

func (p *Plugin) await(ctx context.Context) error {
	select {
	case <-p.settled:
		return nil // even if the engine has hung up: what it asked for is done, and undone
	default:
	}
	select {
	case <-p.settled:
		return nil
	case <-time.After(p.patience):
		return fmt.Errorf("%s: it is still starting: try again", NotReady)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

type outcome struct {
	answer any
	undo   func(context.Context) error
	err    error
}

// within answers at the deadline even if the work goes on. Late success is undone, because the engine
// has been told of a failure and sends no delete for it.
func (p *Plugin) within(parent context.Context, do work, log logrus.FieldLogger) (any, error) {
	ctx, cancel := context.WithTimeout(parent, p.deadline)
	done := make(chan outcome, 1)
	go func() {
		defer cancel()
		done <- p.run(ctx, do, log)
	}()
	select {
	case o := <-done:
		return o.answer, o.err
	case <-ctx.Done():
	}
	// The work cancels ctx itself when it ends: then its outcome is there.
	select {
	case o := <-done:
		return o.answer, o.err
	default:
	}
	go p.late(done, log)
	if errors.Is(context.Cause(ctx), context.DeadlineExceeded) {
		return nil, fmt.Errorf("no result within %v: see mustang's log", p.deadline)
	}
	return nil, fmt.Errorf("the engine hung up: %w", context.Cause(ctx))
}

func (p *Plugin) late(done <-chan outcome, log logrus.FieldLogger) {
	o := <-done
	if o.err != nil || o.undo == nil {
		log.WithError(o.err).Warn("call ended after its deadline")
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), p.deadline)
	defer cancel()
	u := p.run(ctx, func(ctx context.Context) (any, func(context.Context) error, error) {
		return nil, nil, o.undo(ctx)
	}, log)
	log.WithError(u.err).Warn("call succeeded after its deadline and was undone")
}

// run turns a panic into an error: the engine must get an answer, and one bad call must not end the
// daemon under every other container.
func (p *Plugin) run(ctx context.Context, do work, log logrus.FieldLogger) (o outcome) {
	defer func() {
		if v := recover(); v != nil {
			log.WithField("stack", string(debug.Stack())).Errorf("panic: %v", v)
			o = outcome{err: fmt.Errorf("internal error (panic: %v): please report it with mustang's log", v)}
		}
	}()
	o.answer, o.undo, o.err = do(ctx)
	return o
}

func requestID() string {
	var b [4]byte
	rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// errorResponse carries one text under both keys, because the network driver's side of the engine
// reads Err and the IPAM side Error.
type errorResponse struct {
	Err   string
	Error string
}

func failure(text string) errorResponse { return errorResponse{Err: text, Error: text} }

func write(w http.ResponseWriter, status int, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		status, body = http.StatusInternalServerError, []byte(`{"Err":"internal error","Error":"internal error"}`)
	}
	w.Header().Set("Content-Type", contentType)
	w.WriteHeader(status)
	w.Write(append(body, '\n')) // nobody is left to tell if this fails
}
