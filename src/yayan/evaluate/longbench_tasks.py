"""The 21 tasks of LongBench (Bai et al. 2023, arXiv:2308.14508) as its protocol states them: prompt, limit, metric.

The prompts are those of THUDM/LongBench, config/dataset2prompt.json, to the letter, slips included.
"""

from dataclasses import dataclass
from typing import Literal

Column = Literal["single-document QA", "multi-document QA", "summary", "few-shot", "synthetic", "code"]
COLUMNS: tuple[Column, ...] = (
    "single-document QA",
    "multi-document QA",
    "summary",
    "few-shot",
    "synthetic",
    "code",
)
LANGUAGES = ("zh", "en")  # each has its own average over the six columns; code belongs to both
WITHOUT_TEMPLATE = {"trec", "triviaqa", "samsum", "lsht", "lcc", "repobench-p"}
FIRST_LINE_ONLY = {"trec", "triviaqa", "samsum", "lsht"}
PASSAGES_PROMPT = (  # of three tasks
    "Answer the question based on the given passages. Only give me the answer and do not output "
    "any other words.\n\nThe following are given passages.\n{context}\n\nAnswer the question based "
    "on the given passages. Only give me the answer and do not output any other words.\n\n"
    "Question: {input}\nAnswer:"
)


@dataclass(frozen=True)
class Task:
    """A task: which column of the published tables it belongs to, how it is asked, and how answers are scored."""

    name: str
    column: Column
    language: Literal["zh", "en", "code"]
    new_tokens: int
    """Tokens of an answer at most."""
    metric: str
    """Name in `longbench_metrics.METRICS`."""
    prompt: str
    """With `{context}` and, but for some, `{input}`."""

    @property
    def chat(self) -> bool:
        """Whether a chat model is asked in its template; these tasks are to be continued, not answered, otherwise."""
        return self.name not in WITHOUT_TEMPLATE

    def scored_part(self, answer: str) -> str:
        """What is scored of an answer: all of it, or where the protocol says so its first line."""
        return answer.lstrip("\n").split("\n")[0] if self.name in FIRST_LINE_ONLY else answer


TASK_LIST = (
    Task(
        "narrativeqa",
        "single-document QA",
        "en",
        128,
        "f1",
        "You are given a story, which can be either a novel or a movie script, and a question. Answer "
        "the question asconcisely as you can, using a single phrase if possible. Do not provide any "
        "explanation.\n\nStory: {context}\n\nNow, answer the question based on the story asconcisely "
        "as you can, using a single phrase if possible. Do not provide any explanation.\n\nQuestion: "
        "{input}\n\nAnswer:",
    ),
    Task(
        "qasper",
        "single-document QA",
        "en",
        128,
        "f1",
        "You are given a scientific article and a question. Answer the question as concisely as you "
        "can, using a single phrase or sentence if possible. If the question cannot be answered based "
        'on the information in the article, write "unanswerable". If the question is a yes/no '
        'question, answer "yes", "no", or "unanswerable". Do not provide any explanation.\n\nArticle: '
        "{context}\n\n Answer the question based on the above article as concisely as you can, using a "
        "single phrase or sentence if possible. If the question cannot be answered based on the "
        'information in the article, write "unanswerable". If the question is a yes/no question, '
        'answer "yes", "no", or "unanswerable". Do not provide any explanation.\n\nQuestion: '
        "{input}\n\nAnswer:",
    ),
    Task(
        "multifieldqa_en",
        "single-document QA",
        "en",
        64,
        "f1",
        "Read the following text and answer briefly.\n\n{context}\n\nNow, answer the following "
        "question based on the above text, only give me the answer and do not output any other "
        "words.\n\nQuestion: {input}\nAnswer:",
    ),
    Task(
        "multifieldqa_zh",
        "single-document QA",
        "zh",
        64,
        "f1_zh",
        "阅读以下文字并用中文简短回答：\n\n{context}\n\n现在请基于上面的文章回答下面的问题，"
        "只告诉我答案，不要输出任何其他字词。\n\n问题：{input}\n回答：",
    ),
    Task(
        "hotpotqa",
        "multi-document QA",
        "en",
        32,
        "f1",
        PASSAGES_PROMPT,
    ),
    Task(
        "2wikimqa",
        "multi-document QA",
        "en",
        32,
        "f1",
        PASSAGES_PROMPT,
    ),
    Task(
        "musique",
        "multi-document QA",
        "en",
        32,
        "f1",
        PASSAGES_PROMPT,
    ),
    Task(
        "dureader",
        "multi-document QA",
        "zh",
        128,
        "rouge_zh",
        "请基于给定的文章回答下述问题。\n\n文章：{context}\n\n请基于上述文章回答下面的问题。\n\n"
        "问题：{input}\n回答：",
    ),
    Task(
        "gov_report",
        "summary",
        "en",
        512,
        "rouge",
        "You are given a report by a government agency. Write a one-page summary of the report.\n\n"
        "Report:\n{context}\n\nNow, write a one-page summary of the report.\n\nSummary:",
    ),
    Task(
        "qmsum",
        "summary",
        "en",
        512,
        "rouge",
        "You are given a meeting transcript and a query containing a question or instruction. Answer "
        "the query in one or more sentences.\n\nTranscript:\n{context}\n\nNow, answer the query based "
        "on the above meeting transcript in one or more sentences.\n\nQuery: {input}\nAnswer:",
    ),
    Task(
        "multi_news",
        "summary",
        "en",
        512,
        "rouge",
        "You are given several news passages. Write a one-page summary of all news. \n\nNews:\n"
        "{context}\n\nNow, write a one-page summary of all the news.\n\nSummary:",
    ),
    Task(
        "vcsum",
        "summary",
        "zh",
        512,
        "rouge_zh",
        "下面有一段会议记录，请你阅读后，写一段总结，总结会议的内容。\n会议记录：\n{context}\n\n会议总结：",
    ),
    Task(
        "trec",
        "few-shot",
        "en",
        64,
        "classification",
        "Please determine the type of the question below. Here are some examples of questions.\n\n"
        "{context}\n{input}",
    ),
    Task(
        "triviaqa",
        "few-shot",
        "en",
        32,
        "f1",
        "Answer the question based on the given passage. Only give me the answer and do not output any "
        "other words. The following are some examples.\n\n{context}\n\n{input}",
    ),
    Task(
        "samsum",
        "few-shot",
        "en",
        128,
        "rouge",
        "Summarize the dialogue into a few short sentences. The following are some examples.\n\n"
        "{context}\n\n{input}",
    ),
    Task(
        "lsht",
        "few-shot",
        "zh",
        64,
        "classification",
        "请判断给定新闻的类别，下面是一些例子。\n\n{context}\n{input}",
    ),
    Task(
        "passage_count",
        "synthetic",
        "en",
        32,
        "count",
        "There are some paragraphs below sourced from Wikipedia. Some of them may be duplicates. "
        "Please carefully read these paragraphs and determine how many unique paragraphs there are "
        "after removing duplicates. In other words, how many non-repeating paragraphs are there in "
        "total?\n\n{context}\n\nPlease enter the final count of unique paragraphs after removing "
        "duplicates. The output format should only contain the number, such as 1, 2, 3, and so on.\n\n"
        "The final answer is: ",
    ),
    Task(
        "passage_retrieval_en",
        "synthetic",
        "en",
        32,
        "retrieval",
        "Here are 30 paragraphs from Wikipedia, along with an abstract. Please determine which "
        "paragraph the abstract is from.\n\n{context}\n\nThe following is an abstract.\n\n{input}\n\n"
        "Please enter the number of the paragraph that the abstract is from. The answer format must be "
        'like "Paragraph 1", "Paragraph 2", etc.\n\nThe answer is: ',
    ),
    Task(
        "passage_retrieval_zh",
        "synthetic",
        "zh",
        32,
        "retrieval_zh",
        "以下是若干段落文字，以及其中一个段落的摘要。请确定给定的摘要出自哪一段。\n\n{context}\n\n"
        '下面是一个摘要\n\n{input}\n\n请输入摘要所属段落的编号。答案格式必须是"段落1"，'
        '"段落2"等格式\n\n答案是：',
    ),
    Task(
        "lcc",
        "code",
        "code",
        64,
        "edit_similarity",
        "Please complete the code given below. \n{context}Next line of code:\n",
    ),
    Task(
        "repobench-p",
        "code",
        "code",
        64,
        "edit_similarity",
        "Please complete the code given below. \n{context}{input}Next line of code:\n",
    ),
)
TASKS = {task.name: task for task in TASK_LIST}
