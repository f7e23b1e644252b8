// The C interface of the scheduler.
#include "handle.h"
#include "scheduler.h"

struct potq_scheduler {
  Scheduler scheduler;
  const std::vector<Scheduler::Event>* events = nullptr;  // of the last step
};

potq_scheduler* potq_scheduler_open(potq_engine* engine, const potq_scheduler_options* options, char* message, size_t size) {
  return guarded<potq_scheduler*>(message, size, nullptr, [&] {
    return new potq_scheduler{Scheduler(engine->model, engine->pool, engine->forward, *options)};
  });
}

void potq_scheduler_close(potq_scheduler* scheduler) { delete scheduler; }

int64_t potq_scheduler_submit(potq_scheduler* scheduler, const potq_request* request, char* message, size_t size) {
  return guarded<int64_t>(message, size, -1, [&] { return scheduler->scheduler.submit(*request); });
}

int32_t potq_scheduler_allow(potq_scheduler* scheduler, int64_t request, const uint8_t* bits, size_t bytes, char* message,
                             size_t size) {
  return guarded<int32_t>(message, size, 1, [&] {
    scheduler->scheduler.allow(request, bits, bytes);
    return 0;
  });
}

void potq_scheduler_cancel(potq_scheduler* scheduler, int64_t request) { scheduler->scheduler.cancel(request); }

int32_t potq_scheduler_step(potq_scheduler* scheduler, char* message, size_t size) {
  return guarded<int32_t>(message, size, -1, [&] {
    scheduler->events = &scheduler->scheduler.step();
    return int32_t(scheduler->events->size());
  });
}

void potq_scheduler_event(const potq_scheduler* scheduler, int32_t index, potq_event* to) {
  const Scheduler::Event& event = (*scheduler->events)[size_t(index)];
  const auto data = [](const auto& list) { return list.empty() ? nullptr : list.data(); };
  *to = {event.request,        event.token,        event.finish,         1 + event.tops, int32_t(event.prompt.size()),
         data(event.logprobs), data(event.prompt), event.message.c_str()};
}

void potq_scheduler_describe(const potq_scheduler* scheduler, potq_scheduler_statistics* to) {
  *to = scheduler->scheduler.statistics();
}
