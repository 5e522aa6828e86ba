// Work on several threads: TensorFlow's C interface gives a kernel none of its own.

#ifndef L2L_TF_THREADS_H_
#define L2L_TF_THREADS_H_

#include <atomic>
#include <cfenv>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <system_error>
#include <thread>

namespace {

// Threads that wait for work as long as the process lives. They round, and take small numbers for
// zero, as the thread does that they work for.
class Threads {
 public:
  // Calls work(i) for each i below count, on this thread and as many others as there are to be. A
  // caller that finds them at work for another does all by itself.
  static void ForEach(int64_t count, int num_threads, const std::function<void(int64_t)>& work) {
    static Threads* threads = new Threads;  // never deleted: they may outlive what is at exit
    std::unique_lock<std::mutex> all(threads->all_, std::defer_lock);
    if (count > 1 && num_threads > 1 && all.try_lock()) {
      threads->Run(count, num_threads - 1, work);
    } else {
      for (int64_t i = 0; i < count; ++i) work(i);
    }
  }

 private:
  void Run(int64_t count, int num_helpers, const std::function<void(int64_t)>& work) {
    if (count - 1 < num_helpers) num_helpers = count - 1;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      try {
        for (; started_ < num_helpers; ++started_) std::thread([this] { Wait(); }).detach();
      } catch (const std::system_error&) {  // no more threads: fewer do it too
      }
      work_ = &work;
      count_ = count;
      next_ = 0;
      wanted_ = num_helpers;
      std::fegetenv(&environment_);
    }
    wake_.notify_all();
    Work();
    // Those that are at their last piece of it are done soon.
    std::unique_lock<std::mutex> lock(mutex_);
    wanted_ = 0;
    done_.wait(lock, [this] { return at_work_ == 0; });
  }

  void Work() {
    for (int64_t i; (i = next_.fetch_add(1)) < count_;) (*work_)(i);
  }

  void Wait() {
    std::unique_lock<std::mutex> lock(mutex_);
    while (true) {
      wake_.wait(lock, [this] { return wanted_ > 0; });
      --wanted_;
      ++at_work_;
      std::fesetenv(&environment_);
      lock.unlock();
      Work();
      lock.lock();
      if (--at_work_ == 0) done_.notify_one();
    }
  }

  std::mutex all_, mutex_;
  std::condition_variable wake_, done_;
  const std::function<void(int64_t)>* work_ = nullptr;
  int64_t count_ = 0;
  std::atomic<int64_t> next_{0};
  int started_ = 0, wanted_ = 0, at_work_ = 0;
  std::fenv_t environment_;
};

}  // namespace

#endif
